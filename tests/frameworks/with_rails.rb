# Rails' own cache through the proxy. Asks for the name of user 1 once for each line "ask", and reads the "database" from
# its input when the cache has missed.
require "active_support"
require "active_support/cache"
require "active_support/cache/redis_cache_store"

$stdout.sync = true

# recipe
CACHE = ActiveSupport::Cache::RedisCacheStore.new(url: ARGV[0], namespace: "app")

def user_name(id)
  CACHE.fetch("user:#{id}", expires_in: 300) { read(id) }
end
# end

def read(_id)
  puts "reading"
  $stdin.gets.strip
end

while $stdin.gets
  puts "name #{user_name(1)}"
end
