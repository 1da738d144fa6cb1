//! The remedies: what each does to the cache when a key is read, filled and written.

use cachefence::demo::client::Reply;

/// What keeps a cache from being wrong, or does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Remedy {
    /// Straight to Redis; entries end by themselves.
    Ttl,
    /// And the writer deletes after its commit.
    Delete,
    /// The writer deletes before it begins, and again some time after its commit.
    DoubleDelete,
    /// A miss gets a token, without which nobody fills; a writer deletes the token too. As in memcache's leases.
    Lease,
    /// Through the proxy; writers do nothing at all.
    Cachefence,
}

/// Returns the value, or 1 if the token is now this reader's, or 0 if another has it.
const LOOK: &str = "local value = redis.call('GET', KEYS[1]) if value then return value end \
    if redis.call('SET', KEYS[2], ARGV[1], 'NX', 'PX', ARGV[2]) then return 1 end return 0";
const FILL: &str = "if redis.call('GET', KEYS[2]) ~= ARGV[1] then return 0 end \
    redis.call('DEL', KEYS[2]) redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3]) return 1";

/// How long a token is good, in milliseconds: a reader that died must not keep a key empty.
const TOKEN_TTL: &str = "2000";

/// What a look into the cache came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    Hit(u32),
    /// Not there; the reader fills it.
    Miss,
    /// Not there, and somebody else fills it.
    Wait,
}

pub type Command = Vec<String>;

fn command<const N: usize>(words: [&str; N]) -> Command {
    words.map(str::to_owned).to_vec()
}

impl Remedy {
    pub const ALL: [Self; 5] = [Self::Ttl, Self::Delete, Self::DoubleDelete, Self::Lease, Self::Cachefence];

    /// What people do without the proxy.
    pub fn is_baseline(self) -> bool {
        self != Self::Cachefence
    }

    pub fn name(self) -> &'static str {
        match self {
            Self::Ttl => "TTL only",
            Self::Delete => "DEL on write",
            Self::DoubleDelete => "delayed double delete",
            Self::Lease => "Lua lease",
            Self::Cachefence => "cachefence",
        }
    }

    pub fn key(self, id: u32) -> String {
        let prefix = match self {
            Self::Ttl => "ttl",
            Self::Delete => "del",
            Self::DoubleDelete => "twice",
            Self::Lease => "lease",
            Self::Cachefence => "user",
        };
        format!("{prefix}:{id}")
    }

    fn token(self, id: u32) -> String {
        format!("{}:token", self.key(id))
    }

    /// How a reader asks the cache. `reader` is one of a kind.
    pub fn look(self, id: u32, reader: &str) -> Command {
        let key = self.key(id);
        match self {
            Self::Lease => command(["EVAL", LOOK, "2", &key, &self.token(id), reader, TOKEN_TTL]),
            _ => command(["GET", &key]),
        }
    }

    /// What the cache answered.
    ///
    /// # Errors
    /// When it is no answer to a look.
    pub fn looked(self, reply: &Reply) -> Result<Look, String> {
        match reply {
            Reply::Bulk(value) => {
                let version = std::str::from_utf8(value).ok().and_then(|text| text.parse().ok());
                version.map(Look::Hit).ok_or_else(|| format!("a cached value is {value:?}"))
            }
            Reply::Nil | Reply::Int(1) => Ok(Look::Miss),
            Reply::Int(0) => Ok(Look::Wait),
            other => Err(format!("{}: {other:?}", self.name())),
        }
    }

    /// How a reader fills the cache, with the evidence of what it read, if it has asked for any.
    pub fn fill(self, id: u32, version: u32, ttl: u64, reader: &str, evidence: Option<&str>) -> Command {
        let (key, version, ttl) = (self.key(id), version.to_string(), ttl.to_string());
        match (self, evidence) {
            (Self::Lease, _) => command(["EVAL", FILL, "2", &key, &self.token(id), reader, &version, &ttl]),
            (_, Some(evidence)) => command(["ASOF", evidence, "SET", &key, &version, "PX", &ttl]),
            (_, None) => command(["SET", &key, &version, "PX", &ttl]),
        }
    }

    /// What a writer deletes before it begins.
    pub fn before(self, ids: &[u32]) -> Option<Command> {
        (self == Self::DoubleDelete).then(|| self.delete(ids))
    }

    /// What a writer deletes when its commit was acknowledged.
    pub fn after(self, ids: &[u32]) -> Option<Command> {
        matches!(self, Self::Delete | Self::Lease).then(|| self.delete(ids))
    }

    /// What it deletes some time later.
    pub fn later(self, ids: &[u32]) -> Option<Command> {
        (self == Self::DoubleDelete).then(|| self.delete(ids))
    }

    fn delete(self, ids: &[u32]) -> Command {
        let keys = ids.iter().map(|id| self.key(*id));
        let tokens = ids.iter().filter(|_| self == Self::Lease).map(|id| self.token(*id));
        std::iter::once("DEL".to_owned()).chain(keys).chain(tokens).collect()
    }
}
