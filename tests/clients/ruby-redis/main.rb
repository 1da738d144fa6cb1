# ruby-redis: RESP2.

require 'redis'
require 'timeout'

PATIENCE = 20
BINARY = (0..255).map(&:chr).join.b
BIG = Random.new(7).bytes(5 << 20)

def connect(**options)
  Redis.new(host: ENV.fetch('CACHE_HOST'), port: ENV.fetch('CACHE_PORT').to_i, reconnect_attempts: 0, **options)
end

def same(got, expected)
  raise "#{got.inspect[0, 150]} is not #{expected.inspect[0, 150]}" unless got == expected
end

def fails(with)
  yield
rescue Redis::BaseError => e
  raise unless e.message.start_with?(with)
else
  raise "no #{with}"
end

def wait_for(what)
  finish = Time.now + PATIENCE
  until yield
    raise "waited in vain for #{what}" if Time.now > finish

    sleep 0.005
  end
end

CASES = {
  strings: lambda { |r, key|
    same r.set(key, 'v', ex: 100), 'OK'
    same r.get(key), 'v'
    same r.get("#{key}none"), nil
    same r.set(key, 'w', nx: true), false
    same r.mget(key, "#{key}none"), ['v', nil]
    same r.incr("#{key}n"), 1
    fails('WRONGTYPE') { r.lpush(key, 'x') }
    same r.del(key), 1
  },
  types: lambda { |r, key|
    same r.hset("#{key}h", 'a', 1, 'b', 2), 2
    same r.hgetall("#{key}h"), { 'a' => '1', 'b' => '2' }
    same r.zadd("#{key}z", [[1.5, 'a']]), 1
    same r.zrange("#{key}z", 0, -1, with_scores: true), [['a', 1.5]]
    same r.smembers("#{key}none"), []
    id = r.xadd("#{key}x", { 'f' => 'v' })
    same r.xrange("#{key}x"), [[id, { 'f' => 'v' }]]
  },
  binary: lambda { |r, key|
    same r.set(key.b + BINARY, BINARY), 'OK'
    same r.get(key.b + BINARY).b, BINARY
  },
  big: lambda { |r, key|
    same r.set(key, BIG), 'OK'
    same r.get(key).b, BIG
  },
  pipeline: lambda { |r, key|
    got = r.pipelined do |pipe|
      2000.times do |n|
        pipe.set("#{key}#{n}", n)
        pipe.get("#{key}#{n}")
      end
    end
    same got, (0...2000).flat_map { |n| ['OK', n.to_s] }
  },
  threads: lambda { |r, key|
    # One connection for all, and one for each.
    shared = Array.new(8) { Thread.new { 50.times { r.incr(key) } } }
    single = Array.new(8) { Thread.new { connect.tap { |own| 50.times { own.incr(key) } }.close } }
    (shared + single).each(&:join)
    same r.get(key), '800'
  },
  transaction: lambda { |r, key|
    same(r.multi { |m| m.set(key, 1); m.incr(key); m.get(key) }, ['OK', 2, '2'])
    other = connect
    got = r.watch(key) do |_|
      other.set(key, 'other')
      r.multi { |m| m.set(key, 'mine') }
    end
    same got, nil
    same r.get(key), 'other'
    other.close
  },
  blocking: lambda { |r, key|
    waiting = Thread.new { connect.blpop(key, timeout: PATIENCE) }
    wait_for('the client to block') { r.info('clients')['blocked_clients'].to_i.positive? }
    r.rpush(key, 'a')
    same waiting.value, [key, 'a']
    same r.blpop(key, timeout: 0.01), nil
  },
  pubsub: lambda { |r, key|
    got = []
    sub = connect
    thread = Thread.new do
      sub.subscribe(key) do |on|
        on.message do |_, message|
          got << message.b
          sub.unsubscribe
        end
      end
    end
    wait_for('the subscription') { r.publish(key, BINARY) == 1 }
    thread.join
    same got, [BINARY]
    # Without a subscription it is an ordinary connection again.
    same sub.select(0), 'OK'
    same sub.set(key, 'v'), 'OK'
    same sub.get(key), 'v'
    sub.close
  },
  script: lambda { |r, key|
    source = "return {redis.call('SET', KEYS[1], ARGV[1]), ARGV[1]}"
    same r.eval(source, [key], ['v']), %w[OK v]
    sha = r.script(:load, source)
    same r.evalsha(sha, [key], ['w']), %w[OK w]
    fails('NOSCRIPT') { r.evalsha('0' * 40) }
  },
  select: lambda { |r, key|
    other = connect(db: 3)
    same other.set(key, 'three'), 'OK'
    same r.get(key), nil
    same other.get(key), 'three'
    other.close
  },
  acl: lambda { |_, key|
    app = connect(username: 'app', password: 'secret')
    same app.call('ACL', 'WHOAMI'), 'app'
    same app.set(key, 'v'), 'OK'
    reader = connect(username: 'reader', password: 'secret')
    same reader.get(key), 'v'
    fails('NOPERM') { reader.set(key, 'x') }
    fails('WRONGPASS') { connect(username: 'app', password: 'wrong').ping }
  },
  stale: lambda { |r, _|
    user = ENV.fetch('USER_ID')
    name = "user:#{user}"
    profile = "user:#{user}:profile"
    fill = ->(key, value) { r.get(key) || (r.set(key, value) && nil) }
    wait_for('a fill to be let in') { fill.call(profile, 'old') }
    same r.get(name), nil
    r.publish('commit', user)
    wait_for('the deletion') { r.get(profile).nil? }
    same r.set(name, 'old'), 'OK'
    same r.get(name), nil
    wait_for('a new fill to be let in') { fill.call(name, 'new') }
    same r.get(name), 'new'
  }
}.freeze

failed = false
CASES.each do |name, test|
  if name == :stale && !ENV.key?('USER_ID')
    puts 'ok resp2 stale # SKIP nothing is guarded here'
    next
  end
  begin
    r = connect
    Timeout.timeout(PATIENCE * 2) { test.call(r, "ruby-redis:#{name}:") }
    puts "ok resp2 #{name}"
  rescue StandardError => e
    failed = true
    puts "not ok resp2 #{name}: #{e.message} #{e.backtrace.first}".tr("\n", ' ')
  ensure
    r&.close
  end
end
exit(1) if failed
