//! The blocking connection.

use std::collections::{BTreeSet, HashMap};

use redis::{Connection, ErrorKind, ServerErrorKind, TypedCommands};

use super::{Outcome, PATIENCE, Place, big, binary, report, same, until};

type Case = fn(&Place, &mut Connection, &str) -> Outcome;

const CASES: &[(&str, Case)] = &[
    ("strings", strings),
    ("types", types),
    ("binary", binary_values),
    ("big", big_values),
    ("pipeline", pipeline),
    ("pool", pool),
    ("transaction", transaction),
    ("blocking", blocking),
    ("pubsub", pubsub),
    ("script", script),
    ("select", select),
    ("acl", acl),
    ("stale", stale),
];

pub fn run(place: &Place, failed: &mut bool) {
    for (name, case) in CASES {
        let key = format!("redis-rs:{}:{name}:", place.protocol);
        let outcome = place
            .client("", 0)
            .and_then(|client| client.get_connection())
            .map_err(Into::into)
            .and_then(|mut r| case(place, &mut r, &key));
        report(failed, place.protocol, name, outcome);
    }
}

fn strings(_: &Place, r: &mut Connection, key: &str) -> Outcome {
    r.set_ex(key, "v", 100)?;
    same!(r.get(key)?.as_deref(), Some("v"));
    same!(r.get(format!("{key}none"))?, None);
    same!(r.set_nx(key, "w")?, false);
    r.mset(&[(format!("{key}1"), 1), (format!("{key}2"), 2)])?;
    let some: Vec<Option<u8>> = redis::cmd("MGET")
        .arg(format!("{key}1"))
        .arg(format!("{key}none"))
        .arg(format!("{key}2"))
        .query(r)?;
    same!(some, [Some(1), None, Some(2)]);
    same!(r.incr(format!("{key}1"), 1)?, 2);
    same!(r.del(&[key.to_owned(), format!("{key}2")])?, 2);
    let wrong = r.lpush(format!("{key}1"), "a").err();
    same!(wrong.and_then(|error| error.code().map(str::to_owned)).as_deref(), Some("WRONGTYPE"));
    Ok(None)
}

fn types(_: &Place, r: &mut Connection, key: &str) -> Outcome {
    r.hset_multiple(format!("{key}h"), &[("a", 1), ("b", 2)])?;
    same!(r.hgetall(format!("{key}h"))?, HashMap::from([("a".into(), "1".into()), ("b".into(), "2".into())]));
    same!(r.zadd(format!("{key}z"), "a", 1.5)?, 1);
    same!(r.zscore(format!("{key}z"), "a")?, Some(1.5));
    same!(r.zrange_withscores(format!("{key}z"), 0, -1)?, [("a".to_owned(), 1.5)]);
    same!(r.sadd(format!("{key}s"), "a")?, 1);
    same!(r.smembers(format!("{key}s"))?.len(), 1);
    let id = r.xadd(format!("{key}x"), "*", &[("f", "v")])?;
    let read = r.xread(&[format!("{key}x")], &["0"])?;
    same!(read.and_then(|read| Some(read.keys.first()?.ids.first()?.id.clone())), id);
    let pattern = format!("{key}[hszx]");
    let found: BTreeSet<String> =
        redis::TypedCommands::scan_match::<_, String>(r, pattern)?.collect::<Result<_, _>>()?;
    same!(found.len(), 4);
    Ok(None)
}

fn binary_values(_: &Place, r: &mut Connection, key: &str) -> Outcome {
    let mut raw = key.as_bytes().to_vec();
    raw.extend(binary());
    r.set(&raw, binary())?;
    let got: Vec<u8> = redis::cmd("GET").arg(&raw).query(r)?;
    same!(got, binary());
    Ok(None)
}

fn big_values(_: &Place, r: &mut Connection, key: &str) -> Outcome {
    r.set(key, big())?;
    let got: Vec<Vec<u8>> = redis::cmd("MGET").arg(key).arg(key).query(r)?;
    same!(got.iter().all(|one| *one == big()), true);
    Ok(None)
}

fn pipeline(_: &Place, r: &mut Connection, key: &str) -> Outcome {
    let mut pipe = redis::pipe();
    for n in 0..2000 {
        pipe.set(format!("{key}{n}"), n).ignore().get(format!("{key}{n}"));
    }
    let got: Vec<u32> = pipe.query(r)?;
    same!(got, (0..2000).collect::<Vec<_>>());
    Ok(None)
}

fn pool(place: &Place, r: &mut Connection, key: &str) -> Outcome {
    let client = place.client("", 0)?;
    let threads: Vec<_> = (0..8)
        .map(|n| {
            let (client, key) = (client.clone(), key.to_owned());
            std::thread::spawn(move || -> redis::RedisResult<()> {
                let mut one = client.get_connection()?;
                for _ in 0..50 {
                    one.incr(&key, n)?;
                }
                Ok(())
            })
        })
        .collect();
    for thread in threads {
        thread.join().map_err(|_| "a thread panicked")??;
    }
    same!(r.get(key)?.as_deref(), Some("1400"));
    Ok(None)
}

fn transaction(place: &Place, r: &mut Connection, key: &str) -> Outcome {
    let got: (u32, String) = redis::pipe().atomic().set(key, 1).ignore().incr(key, 1).get(key).query(r)?;
    same!(got, (2, "2".to_owned()));
    let mut other = place.client("", 0)?.get_connection()?;
    let mut tries = 0;
    let got: (u32,) = redis::transaction(r, &[key], |r, pipe| {
        tries += 1;
        let value: u32 = redis::cmd("GET").arg(key).query(r)?;
        if tries == 1 {
            // Somebody else is faster, once.
            other.incr(key, 10)?;
        }
        pipe.set(key, value + 1).ignore().cmd("GET").arg(key).query(r)
    })?;
    same!((got, tries), ((13,), 2));
    Ok(None)
}

fn blocking(place: &Place, r: &mut Connection, key: &str) -> Outcome {
    let mut one = place.client("", 0)?.get_connection()?;
    let name = key.to_owned();
    let waiting = std::thread::spawn(move || one.blpop(name, PATIENCE.as_secs_f64()));
    until("the client to block", || {
        let info: String = redis::cmd("INFO").arg("clients").query(r)?;
        Ok(!info.contains("blocked_clients:0"))
    })?;
    r.rpush(key, "a")?;
    let got = waiting.join().map_err(|_| "the thread panicked")??;
    same!(got, Some([key.to_owned(), "a".to_owned()]));
    same!(r.blpop(key, 0.01)?, None);
    Ok(None)
}

fn pubsub(place: &Place, r: &mut Connection, key: &str) -> Outcome {
    let mut one = place.client("", 0)?.get_connection()?;
    {
        let mut sub = one.as_pubsub();
        sub.set_read_timeout(Some(PATIENCE))?;
        sub.subscribe(key)?;
        sub.psubscribe(format!("{key}:*"))?;
        same!(r.publish(key, binary())?, 1);
        same!(r.publish(format!("{key}:1"), "x")?, 1);
        same!(sub.get_message()?.get_payload::<Vec<u8>>()?, binary());
        same!(sub.get_message()?.get_channel_name().to_owned(), format!("{key}:1"));
    }
    // Dropping it ends the subscriptions, and the connection answers again.
    one.set(key, "v")?;
    same!(one.get(key)?.as_deref(), Some("v"));
    same!(r.publish(key, "x")?, 0);
    Ok(None)
}

fn script(_: &Place, r: &mut Connection, key: &str) -> Outcome {
    let script = redis::Script::new("return {redis.call('SET', KEYS[1], ARGV[1]).ok, ARGV[1]}");
    for value in ["v", "w"] {
        let got: (String, String) = script.key(key).arg(value).invoke(r)?;
        same!(got, ("OK".to_owned(), value.to_owned()));
    }
    let missing: redis::RedisResult<()> = redis::cmd("EVALSHA").arg("0".repeat(40)).arg(0).query(r);
    same!(missing.err().map(|error| error.kind()), Some(ErrorKind::Server(ServerErrorKind::NoScript)));
    Ok(None)
}

fn select(place: &Place, r: &mut Connection, key: &str) -> Outcome {
    let mut other = place.client("", 3)?.get_connection()?;
    other.set(key, "three")?;
    same!(r.get(key)?, None);
    same!(other.get(key)?.as_deref(), Some("three"));
    Ok(None)
}

fn acl(place: &Place, _: &mut Connection, key: &str) -> Outcome {
    let mut app = place.client("app:secret@", 0)?.get_connection()?;
    let who: String = redis::cmd("ACL").arg("WHOAMI").query(&mut app)?;
    same!(who, "app");
    app.set(key, "v")?;
    let mut reader = place.client("reader:secret@", 0)?.get_connection()?;
    same!(reader.get(key)?.as_deref(), Some("v"));
    let denied = reader.set(key, "x").err();
    same!(denied.and_then(|error| error.code().map(str::to_owned)).as_deref(), Some("NOPERM"));
    same!(place.client("app:wrong@", 0)?.get_connection().is_err(), true);
    Ok(None)
}

fn stale(place: &Place, r: &mut Connection, _: &str) -> Outcome {
    let Some(user) = place.user else { return Ok(Some("nothing is guarded here")) };
    let (name, profile) = (format!("user:{user}"), format!("user:{user}:profile"));
    let fill = |r: &mut Connection, key: &str, value: &str| {
        let found = r.get(key)?;
        if found.is_none() {
            r.set(key, value)?;
        }
        Ok(found.is_some())
    };
    until("a fill to be let in", || fill(r, &profile, "old"))?;
    same!(r.get(&name)?, None);
    r.publish("commit", user)?;
    until("the deletion", || Ok(r.get(&profile)?.is_none()))?;
    r.set(&name, "old")?;
    same!(r.get(&name)?, None);
    until("a new fill to be let in", || fill(r, &name, "new"))?;
    same!(r.get(&name)?.as_deref(), Some("new"));
    Ok(None)
}
