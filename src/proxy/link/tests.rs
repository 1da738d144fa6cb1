use tokio::net::TcpListener;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::task::{LocalSet, spawn_local};

use super::*;
use crate::admin::AdminSource;
use crate::audit::{Auditor, Surroundings};
use crate::cache::{Abandoned, AbandonedFill, CacheState, Endpoint, Upstreams};
use crate::command::CommandTable;
use crate::config::{self, Config, Contract};
use crate::feed::{FeedState, Positions};
use crate::fence::{ConnId, Fence, KeyHash, Limits};
use crate::guard::Guards;
use crate::metrics::Metrics;

struct Nobody;

impl AdminSource for Nobody {
    fn metrics(&self) -> String {
        String::new()
    }

    fn ready(&self) -> Result<Vec<String>, Vec<String>> {
        Ok(Vec::new())
    }

    fn status(&self) -> serde_json::Value {
        serde_json::Value::Null
    }
}

fn gate(redis: &str) -> (Arc<Gate>, UnboundedReceiver<Abandoned>) {
    let settings = format!("redis.url = \"redis://{redis}/0\"\npostgres.url = \"postgres://localhost/app\"");
    let config: Config = toml::from_str(&settings).expect("settings");
    let guards = Guards::new(&[], 0).expect("no guards");
    let limits =
        Limits { history: 1, lease_ttl: 1, longest_cap: 1, max_keys: 1, max_leases: 1, guards: 0, shards: 2 };
    let (fence, started) = (Arc::new(Fence::new(limits)), std::time::Instant::now());
    let (upstreams, handed) = Upstreams::new("cachefence:test".into());
    let metrics = Arc::new(Metrics::new(&guards, &[] as &[&str]).expect("metrics"));
    let (matching, feed, cache): (_, _, Arc<CacheState>) =
        (Arc::new(arc_swap::ArcSwap::from_pointee(guards)), Arc::new(FeedState::new(0)), Arc::default());
    let around = Surroundings {
        fence: fence.clone(),
        guards: matching.clone(),
        feed: feed.clone(),
        cache: cache.clone(),
        enforces: true,
        show_keys: true,
    };
    let (auditor, _) = Auditor::new(&config.audit, around, metrics.clone(), started);
    let gate = Gate {
        auditor,
        positions: Arc::new(Positions::new(fence.clone(), &[], started)),
        fence,
        metrics: metrics.clone(),
        refusals: Arc::new(crate::refusals::Refusals::new(true)),
        guards: matching,
        commands: Arc::new(arc_swap::ArcSwap::from_pointee(CommandTable::known())),
        named: config::Guard::of_messages(Contract::Bounded),
        account: Arc::new(Nobody),
        feed,
        cache,
        upstreams: Arc::new(upstreams),
        address: Endpoint::new(&config).expect("an endpoint"),
        buffered: crate::proxy::Buffered::new(1 << 30, metrics.clone()),
        observe: false,
        newer_counts: true,
        started,
    };
    (Arc::new(gate), handed.abandoned)
}

/// The task of a link that has had a panic is dropped where it waits, as one that is aborted. Deletions wait for its fills:
/// they have to be ended all the same, and the client must not wait for ever.
#[tokio::test]
async fn a_link_that_loses_its_task_hands_over_its_fills() {
    // It accepts, and says nothing.
    let redis = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = redis.local_addr().expect("an address").to_string();
    let (gate, mut abandoned) = gate(&address);
    let on_one_thread = async {
        let client = Rc::new(Client::new(ConnId(1), 0));
        let link = Link::new(gate, client.account(), None);
        let task = spawn_local(link.clone().run());
        let (socket, _) = redis.accept().await.expect("the link");
        let id = link.fill_id();
        let fill = AbandonedFill { hash: KeyHash(7), id, db: 0, key: (*b"user:1").into(), replaces: true };
        let meaning = Meaning::Fills([fill].into());
        let expected = Expected { client: client.clone(), delivery: Delivery::Forward, meaning };
        link.send(|out| put_request(out, &[b"SET", b"user:1", b"x"]), expected);
        task.abort();
        assert!(task.await.is_err_and(|error| error.is_cancelled()));
        drop(socket);
        assert!(link.is_closed());
        assert_eq!(client.outstanding(), 0);
        assert!(client.out().starts_with(b"-ERR cachefence: upstream "), "{:?}", client.out());
    };
    LocalSet::new().run_until(on_one_thread).await;
    let handed = abandoned.try_recv().expect("the fill");
    assert_eq!(handed.fills.len(), 1);
}
