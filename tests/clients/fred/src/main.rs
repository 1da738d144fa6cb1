//! fred: a client, its pool and its subscriber.

use std::error::Error;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use fred::interfaces::TrackingInterface;
use fred::prelude::*;
use fred::types::{Key, RespVersion};

type Outcome = Result<Option<&'static str>, Box<dyn Error>>;

const PATIENCE: Duration = Duration::from_secs(20);

macro_rules! same {
    ($left:expr, $right:expr) => {
        match ($left, $right) {
            (left, right) if left != right => {
                let text: String = format!("{left:?} is not {right:?}").chars().take(300).collect();
                return Err(format!("line {}: {text}", line!()).into());
            }
            _ => {}
        }
    };
}

/// Where the cache is.
struct Place {
    protocol: u32,
    /// A row of the guarded table that nobody else uses.
    user: Option<u32>,
}

impl Place {
    fn builder(&self, user: Option<(&str, &str)>, db: u8) -> Result<Builder, Box<dyn Error>> {
        let setting = |name| std::env::var(name).unwrap_or_default();
        let mut config =
            Config::from_url(&format!("redis://{}:{}/{db}", setting("CACHE_HOST"), setting("CACHE_PORT")))?;
        config.version = if self.protocol == 3 { RespVersion::RESP3 } else { RespVersion::RESP2 };
        config.fail_fast = true;
        if let Some((name, password)) = user {
            (config.username, config.password) = (Some(name.into()), Some(password.into()));
        }
        Ok(Builder::from_config(config))
    }

    async fn connect(&self, user: Option<(&str, &str)>, db: u8) -> Result<Client, Box<dyn Error>> {
        let client = self.builder(user, db)?.build()?;
        client.init().await?;
        Ok(client)
    }
}

async fn until(
    what: &str,
    mut condition: impl AsyncFnMut() -> Result<bool, fred::error::Error>,
) -> Result<(), Box<dyn Error>> {
    let began = Instant::now();
    while !condition().await? {
        if began.elapsed() > PATIENCE {
            return Err(format!("waited in vain for {what}").into());
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}

async fn strings(_: &Place, r: Client, key: String) -> Outcome {
    r.set::<(), _, _>(&key, "v", Some(Expiration::EX(100)), None, false).await?;
    same!(r.get::<String, _>(&key).await?, "v");
    same!(r.get::<Option<String>, _>(format!("{key}none")).await?, None);
    r.mset(vec![(format!("{key}1"), 1), (format!("{key}2"), 2)]).await?;
    let keys = vec![format!("{key}1"), format!("{key}none"), format!("{key}2")];
    same!(r.mget::<Vec<Option<u8>>, _>(keys).await?, [Some(1), None, Some(2)]);
    same!(r.incr::<u8, _>(format!("{key}1")).await?, 2);
    let wrong = r.lpush::<(), _, _>(format!("{key}1"), "a").await.err();
    same!(wrong.is_some_and(|error| error.details().starts_with("WRONGTYPE")), true);
    Ok(None)
}

async fn types(_: &Place, r: Client, key: String) -> Outcome {
    r.hset::<(), _, _>(format!("{key}h"), ("a", 1)).await?;
    same!(r.hgetall::<Vec<(String, u8)>, _>(format!("{key}h")).await?, [("a".to_owned(), 1)]);
    r.zadd::<(), _, _>(format!("{key}z"), None, None, false, false, (1.5, "a")).await?;
    same!(r.zscore::<f64, _, _>(format!("{key}z"), "a").await?, 1.5);
    r.sadd::<(), _, _>(format!("{key}s"), "a").await?;
    same!(r.smembers::<Vec<String>, _>(format!("{key}s")).await?, ["a"]);
    let id: String = r.xadd(format!("{key}x"), false, None, "*", ("f", "v")).await?;
    let read: fred::types::streams::XReadResponse<String, String, String, String> =
        r.xread_map(None, None, format!("{key}x"), "0").await?;
    same!(read.values().next().and_then(|entries| Some(entries.first()?.0.clone())), Some(id));
    Ok(None)
}

async fn binary(_: &Place, r: Client, key: String) -> Outcome {
    let every: Vec<u8> = (0..=255).collect();
    let raw = Key::from([key.as_bytes(), &every].concat().as_slice());
    r.set::<(), _, _>(&raw, every.as_slice(), None, None, false).await?;
    same!(r.get::<Vec<u8>, _>(&raw).await?, every);
    Ok(None)
}

async fn big(_: &Place, r: Client, key: String) -> Outcome {
    let big: Vec<u8> = (0..5u32 << 20).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    r.set::<(), _, _>(&key, big.as_slice(), None, None, false).await?;
    same!(r.get::<Vec<u8>, _>(&key).await? == big, true);
    Ok(None)
}

async fn pipeline(_: &Place, r: Client, key: String) -> Outcome {
    let pipe = r.pipeline();
    for n in 0..2000 {
        pipe.set::<(), _, _>(format!("{key}{n}"), n, None, None, false).await?;
        pipe.get::<(), _>(format!("{key}{n}")).await?;
    }
    let got: Vec<Value> = pipe.all().await?;
    for (n, pair) in got.chunks(2).enumerate() {
        same!(pair[1].clone().convert::<usize>()?, n);
    }
    same!(got.len(), 4000);
    Ok(None)
}

async fn pool(place: &Place, r: Client, key: String) -> Outcome {
    let pool = place.builder(None, 0)?.build_pool(5)?;
    pool.init().await?;
    let tasks: Vec<_> = (0..100)
        .map(|n: i64| {
            let (pool, key) = (pool.clone(), key.clone());
            tokio::spawn(async move {
                for _ in 0..20 {
                    pool.incr_by::<(), _>(&key, n).await?;
                }
                Ok::<_, fred::error::Error>(())
            })
        })
        .collect();
    for task in tasks {
        task.await??;
    }
    same!(r.get::<i64, _>(&key).await?, 20 * 4950);
    pool.quit().await?;
    Ok(None)
}

async fn transaction(place: &Place, r: Client, key: String) -> Outcome {
    let trx = r.multi();
    trx.set::<(), _, _>(&key, 1, None, None, false).await?;
    trx.incr::<(), _>(&key).await?;
    trx.get::<(), _>(&key).await?;
    same!(trx.exec::<(String, u8, u8)>(true).await?, ("OK".to_owned(), 2, 2));
    // A watch is the connection's: a client of one connection, and somebody else who is faster.
    let other = place.connect(None, 0).await?;
    r.watch(&key).await?;
    other.set::<(), _, _>(&key, "other", None, None, false).await?;
    let trx = r.multi();
    trx.set::<(), _, _>(&key, "mine", None, None, false).await?;
    let _ = trx.exec::<Value>(true).await;
    same!(r.get::<String, _>(&key).await?, "other");
    other.quit().await?;
    Ok(None)
}

async fn blocking(place: &Place, r: Client, key: String) -> Outcome {
    let one = place.connect(None, 0).await?;
    let name = key.clone();
    let waiting =
        tokio::spawn(
            async move { one.blpop::<Option<(String, String)>, _>(name, PATIENCE.as_secs_f64()).await },
        );
    until("the client to block", async || {
        let info: String = r.info(Some(fred::types::InfoKind::Clients)).await?;
        Ok(!info.contains("blocked_clients:0"))
    })
    .await?;
    r.rpush::<(), _, _>(&key, "a").await?;
    same!(waiting.await??, Some((key, "a".to_owned())));
    Ok(None)
}

async fn pubsub(place: &Place, r: Client, key: String) -> Outcome {
    let subscriber = place.builder(None, 0)?.build_subscriber_client()?;
    subscriber.init().await?;
    let mut messages = subscriber.message_rx();
    subscriber.subscribe(&*key).await?;
    subscriber.psubscribe(format!("{key}:*")).await?;
    // These do not wait for what the server says to them.
    subscriber.ping::<fred::types::Value>(None).await?;
    same!(r.publish::<u8, _, _>(&*key, "one").await?, 1);
    same!(r.publish::<u8, _, _>(format!("{key}:1"), "two").await?, 1);
    for expected in ["one", "two"] {
        let message = tokio::time::timeout(PATIENCE, messages.recv()).await??;
        same!(message.value.convert::<String>()?, expected);
    }
    subscriber.ssubscribe(format!("{key}s")).await?;
    same!(r.spublish::<u8, _, _>(format!("{key}s"), "three").await?, 1);
    same!(tokio::time::timeout(PATIENCE, messages.recv()).await??.value.convert::<String>()?, "three");
    subscriber.unsubscribe(&*key).await?;
    subscriber.ping::<fred::types::Value>(None).await?;
    same!(r.publish::<u8, _, _>(&*key, "nobody").await?, 0);
    subscriber.quit().await?;
    Ok(None)
}

async fn script(_: &Place, r: Client, key: String) -> Outcome {
    let source = "return {redis.call('SET', KEYS[1], ARGV[1]), ARGV[1]}";
    let got: (String, String) = r.eval(source, vec![key.clone()], vec!["u"]).await?;
    same!(got, ("OK".to_owned(), "u".to_owned()));
    let sha: String = r.script_load(source).await?;
    for value in ["v", "w"] {
        let got: (String, String) = r.evalsha(&sha, vec![key.clone()], vec![value]).await?;
        same!(got, ("OK".to_owned(), value.to_owned()));
    }
    Ok(None)
}

async fn select(place: &Place, r: Client, key: String) -> Outcome {
    let other = place.connect(None, 3).await?;
    other.set::<(), _, _>(&key, "three", None, None, false).await?;
    same!(r.get::<Option<String>, _>(&key).await?, None);
    same!(other.get::<String, _>(&key).await?, "three");
    other.select(0).await?;
    same!(other.get::<Option<String>, _>(&key).await?, None);
    other.quit().await?;
    Ok(None)
}

async fn acl(place: &Place, _: Client, key: String) -> Outcome {
    let app = place.connect(Some(("app", "secret")), 0).await?;
    same!(app.acl_whoami::<String>().await?, "app");
    app.set::<(), _, _>(&key, "v", None, None, false).await?;
    let reader = place.connect(Some(("reader", "secret")), 0).await?;
    same!(reader.get::<String, _>(&key).await?, "v");
    same!(reader.set::<(), _, _>(&key, "x", None, None, false).await.is_err(), true);
    same!(place.connect(Some(("app", "wrong")), 0).await.is_err(), true);
    Ok(None)
}

async fn tracking(place: &Place, r: Client, key: String) -> Outcome {
    if place.protocol == 2 {
        return Ok(Some("the client tracks by itself with RESP3 only"));
    }
    let near = place.connect(None, 0).await?;
    let mut gone = near.invalidation_rx();
    near.start_tracking(None, false, false, false, false).await?;
    r.set::<(), _, _>(&key, "1", None, None, false).await?;
    same!(near.get::<String, _>(&key).await?, "1");
    r.set::<(), _, _>(&key, "2", None, None, false).await?;
    loop {
        let invalidation = tokio::time::timeout(PATIENCE, gone.recv()).await??;
        if invalidation.keys.contains(&Key::from(key.as_str())) {
            break;
        }
    }
    near.stop_tracking().await?;
    same!(near.get::<String, _>(&key).await?, "2");
    Ok(None)
}

async fn stale(place: &Place, r: Client, _: String) -> Outcome {
    let Some(user) = place.user else { return Ok(Some("nothing is guarded here")) };
    let (name, profile) = (format!("user:{user}"), format!("user:{user}:profile"));
    let fill = async |key: &str, value: &'static str| {
        let found: Option<String> = r.get(key).await?;
        if found.is_none() {
            r.set::<(), _, _>(key, value, None, None, false).await?;
        }
        Ok(found.is_some())
    };
    until("a fill to be let in", async || fill(&profile, "old").await).await?;
    same!(r.get::<Option<String>, _>(&name).await?, None);
    r.publish::<(), _, _>("commit", user.to_string()).await?;
    until("the deletion", async || Ok(r.get::<Option<String>, _>(&profile).await?.is_none())).await?;
    r.set::<(), _, _>(&name, "old", None, None, false).await?;
    same!(r.get::<Option<String>, _>(&name).await?, None);
    until("a new fill to be let in", async || fill(&name, "new").await).await?;
    same!(r.get::<String, _>(&name).await?, "new");
    Ok(None)
}

#[tokio::main]
async fn main() -> ExitCode {
    let setting = |name| std::env::var(name).unwrap_or_default();
    let mut failed = false;
    for protocol in setting("PROTOCOLS").split(' ').filter_map(|protocol| protocol.parse().ok()) {
        let user = setting("USER_ID").parse().ok().map(|user: u32| user + protocol);
        let place = Place { protocol, user };
        macro_rules! cases {
            ($($name:ident),*) => {
                $(
                    let name = stringify!($name);
                    let case = async {
                        let r = place.connect(None, 0).await?;
                        let outcome = $name(&place, r.clone(), format!("fred:{protocol}:{name}:")).await;
                        let _ = r.quit().await;
                        outcome
                    };
                    let outcome = match tokio::time::timeout(PATIENCE * 2, case).await {
                        Ok(outcome) => outcome,
                        Err(_) => Err("it hangs".into()),
                    };
                    match outcome {
                        Ok(None) => println!("ok resp{protocol} {name}"),
                        Ok(Some(why)) => println!("ok resp{protocol} {name} # SKIP {why}"),
                        Err(error) => {
                            failed = true;
                            println!("not ok resp{protocol} {name}: {}", error.to_string().replace('\n', " "));
                        }
                    }
                )*
            };
        }
        cases!(
            strings,
            types,
            binary,
            big,
            pipeline,
            pool,
            transaction,
            blocking,
            pubsub,
            script,
            select,
            acl,
            tracking,
            stale
        );
    }
    ExitCode::from(u8::from(failed))
}
