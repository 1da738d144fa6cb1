//! What the proxy knows by hand: commands that are about the connection, and those whose keys, misses or refusals it
//! has to understand better than any table of the server's can say.

use super::fork::Fork;
use super::{Command, Effect, FillForm, KeySpec, Keys, Miss, Read, Refused, Route, Syntax};

/// All of them: name, what it is, and on what else that depends.
pub(super) fn commands() -> impl Iterator<Item = (&'static str, Command, Fork)> {
    let reads = READS.iter().flat_map(|(miss, keys, names)| {
        names.iter().map(|name| {
            let changes = CHANGING_READS.contains(name);
            let read =
                Read { keys: *keys, miss: *miss, route: Route::Lane, changes, expires: *name == "GETEX" };
            (*name, Command::Read(read))
        })
    });
    let scripts = READING_SCRIPTS.iter().map(|name| {
        let (keys, miss, route) = (Keys::counted(2, 1), Miss::Unknown, Route::Pin);
        (*name, Command::Read(Read { keys, miss, route, changes: false, expires: false }))
    });
    let fills = FILLS.iter().flat_map(|(effect, keys, refused, names)| {
        names.iter().map(|name| (*name, Command::Fill(fill(name, *effect, *keys, *refused))))
    });
    let kept = NOT_FILLS.iter().map(|name| (*name, Command::Plain));
    let expiring = EXPIRING.iter().map(|name| (*name, Command::Expire));
    let others = OTHERS.iter().copied();
    others
        .chain(reads)
        .chain(scripts)
        .chain(fills)
        .chain(kept)
        .chain(expiring)
        .map(|(name, command)| (name, command, fork(name)))
}

fn fill(name: &str, effect: Effect, keys: Keys, refused: Refused) -> FillForm {
    let syntax = match name {
        "SET" => Syntax::Set,
        "SETEX" => Syntax::SetEx,
        "PSETEX" => Syntax::PSetEx,
        "SETNX" => Syntax::SetNx,
        "GETSET" => Syntax::GetSet,
        "MSET" => Syntax::MSet,
        "MSETNX" => Syntax::MSetNx,
        "HSET" | "HMSET" => Syntax::Fields,
        "HSETNX" => Syntax::HSetNx,
        "COPY" => Syntax::Copy,
        "MOVE" => Syntax::Move,
        _ => Syntax::Other,
    };
    let route = match name {
        "EVAL" | "EVALSHA" | "FCALL" => Route::Pin,
        "BLMOVE" | "BRPOPLPUSH" => Route::Blocking,
        _ => Route::Lane,
    };
    FillForm { keys, effect, refused, syntax, route }
}

fn fork(name: &str) -> Fork {
    match name {
        "SCRIPT" => Fork::Container,
        "XREAD" | "XREADGROUP" => Fork::Block,
        "BITFIELD" => Fork::BitField,
        "SORT" | "GEORADIUS" | "GEORADIUSBYMEMBER" => Fork::Store,
        "JSON.SET" => Fork::Path,
        "GETEX" => Fork::Expiry,
        _ => Fork::None,
    }
}

const FIRST: Keys = Keys::at(1);
const SECOND: Keys = Keys::at(2);
const ALL: Keys = Keys::range(1, -1, 1);
const COUNTED: Keys = Keys::counted(1, 1);
const SCRIPT: Keys = Keys::counted(2, 1);
const STORED: Keys = Keys::one(KeySpec::After(&["STORE", "STOREDIST"]));

/// Reads that can miss.
const READS: &[(Miss, Keys, &[&str])] = &[
    (
        Miss::Nil,
        FIRST,
        &[
            "GET", "GETDEL", "GETEX", "HGET", "LINDEX", "ZSCORE", "ZRANK", "ZREVRANK", "GEODIST", "DUMP",
            "DIGEST", "JSON.GET",
        ],
    ),
    (Miss::Nil, SECOND, &["OBJECT"]),
    (Miss::NilOrEmpty, FIRST, &["HRANDFIELD", "SRANDMEMBER", "ZRANDMEMBER", "LPOS", "SPOP"]),
    (Miss::NilOrNilArray, FIRST, &["LPOP", "RPOP"]),
    (Miss::NilArray, COUNTED, &["LMPOP", "ZMPOP"]),
    (
        Miss::EmptyArray,
        FIRST,
        &[
            "LRANGE",
            "HKEYS",
            "HVALS",
            "ZRANGE",
            "ZRANGEBYLEX",
            "ZRANGEBYSCORE",
            "ZREVRANGE",
            "ZREVRANGEBYLEX",
            "ZREVRANGEBYSCORE",
            "XRANGE",
            "XREVRANGE",
            "GEOSEARCH",
            "GEORADIUS_RO",
            "GEORADIUSBYMEMBER_RO",
            "SORT_RO",
            "ZPOPMIN",
            "ZPOPMAX",
        ],
    ),
    (Miss::EmptyArray, COUNTED, &["ZDIFF", "ZINTER", "ZUNION"]),
    (Miss::EmptySet, FIRST, &["SMEMBERS"]),
    (Miss::EmptySet, ALL, &["SDIFF", "SINTER", "SUNION"]),
    (Miss::EmptyMap, FIRST, &["HGETALL"]),
    (Miss::EmptyString, FIRST, &["GETRANGE", "SUBSTR"]),
    (Miss::EmptyString, Keys::range(1, 1, 1), &["LCS"]),
    (
        Miss::Zero,
        FIRST,
        &[
            "STRLEN",
            "GETBIT",
            "BITCOUNT",
            "LLEN",
            "HLEN",
            "HEXISTS",
            "HSTRLEN",
            "SCARD",
            "SISMEMBER",
            "ZCARD",
            "ZCOUNT",
            "ZLEXCOUNT",
            "XLEN",
        ],
    ),
    (Miss::Zero, ALL, &["EXISTS", "TOUCH", "PFCOUNT"]),
    (Miss::Zero, COUNTED, &["SINTERCARD", "ZINTERCARD"]),
    (Miss::NoTtl, FIRST, &["TTL", "PTTL", "EXPIRETIME", "PEXPIRETIME"]),
    (Miss::NoTtlPerField, FIRST, &["HTTL", "HPTTL", "HEXPIRETIME", "HPEXPIRETIME"]),
    (Miss::NoType, FIRST, &["TYPE"]),
    (Miss::EmptyScan, FIRST, &["HSCAN", "SSCAN", "ZSCAN"]),
    (Miss::NoBit, FIRST, &["BITPOS"]),
    (Miss::NilPerKey, ALL, &["MGET"]),
    (Miss::NilPerKey, Keys::range(1, -2, 1), &["JSON.MGET"]),
    (Miss::NilPerField, FIRST, &["HMGET", "HGETDEL", "HGETEX"]),
    (Miss::NilPerMember, FIRST, &["ZMSCORE", "GEOHASH"]),
    (Miss::NilArrayPerMember, FIRST, &["GEOPOS"]),
    (Miss::ZeroPerMember, FIRST, &["SMISMEMBER"]),
    (Miss::Unknown, FIRST, &["BITFIELD_RO", "XPENDING"]),
    (Miss::Unknown, SECOND, &["XINFO"]),
];

/// Reads whose other half is wanted even where the reply is not.
const CHANGING_READS: &[&str] = &[
    "GETDEL", "GETEX", "HGETDEL", "HGETEX", "TOUCH", "LPOP", "RPOP", "SPOP", "LMPOP", "ZPOPMIN", "ZPOPMAX",
    "ZMPOP",
];

/// Scripts that declare to change nothing.
const READING_SCRIPTS: &[&str] = &["EVAL_RO", "EVALSHA_RO", "FCALL_RO"];

/// Commands that put data into keys.
const FILLS: &[(Effect, Keys, Refused, &[&str])] = &[
    (Effect::Replaces, FIRST, Refused::Set, &["SET"]),
    (Effect::Replaces, FIRST, Refused::Ok, &["SETEX", "PSETEX"]),
    (Effect::Replaces, FIRST, Refused::One, &["SETNX"]),
    (Effect::Replaces, FIRST, Refused::Nil, &["GETSET"]),
    (Effect::Replaces, Keys::range(1, -1, 2), Refused::Ok, &["MSET"]),
    (Effect::Replaces, Keys::range(1, -1, 2), Refused::One, &["MSETNX"]),
    (Effect::Replaces, Keys::counted(1, 2), Refused::One, &["MSETEX"]),
    (Effect::Adds, FIRST, Refused::Count(&[], 2), &["HSET"]),
    (Effect::Adds, FIRST, Refused::Ok, &["HMSET", "LSET"]),
    (Effect::Adds, FIRST, Refused::One, &["HSETNX", "HSETEX", "PFADD"]),
    (Effect::Adds, FIRST, Refused::Count(&[], 1), &["SADD", "LPUSH", "RPUSH"]),
    (Effect::Adds, FIRST, Refused::Count(&["NX", "XX", "GT", "LT", "CH", "INCR"], 2), &["ZADD"]),
    (Effect::Adds, FIRST, Refused::Count(&["NX", "XX", "CH"], 3), &["GEOADD"]),
    (Effect::Adds, FIRST, Refused::Length(None), &["APPEND"]),
    (Effect::Adds, FIRST, Refused::Length(Some(2)), &["SETRANGE"]),
    (Effect::Adds, FIRST, Refused::Zero, &["LINSERT", "LPUSHX", "RPUSHX"]),
    (Effect::Adds, FIRST, Refused::Nil, &["XADD"]),
    (
        Effect::Adds,
        FIRST,
        Refused::Error,
        &[
            "INCR",
            "DECR",
            "INCRBY",
            "DECRBY",
            "INCRBYFLOAT",
            "HINCRBY",
            "HINCRBYFLOAT",
            "ZINCRBY",
            "SETBIT",
            "BITFIELD",
        ],
    ),
    (Effect::Adds, SCRIPT, Refused::Error, &["EVAL", "EVALSHA", "FCALL"]),
    (Effect::Derives, FIRST, Refused::Ok, &["RESTORE", "RESTORE-ASKING"]),
    (Effect::Derives, SECOND, Refused::Ok, &["RENAME"]),
    (Effect::Derives, SECOND, Refused::Zero, &["RENAMENX", "COPY", "BITOP"]),
    (Effect::Derives, FIRST, Refused::Zero, &["MOVE"]),
    (
        Effect::Derives,
        FIRST,
        Refused::Zero,
        &[
            "SDIFFSTORE",
            "SINTERSTORE",
            "SUNIONSTORE",
            "ZDIFFSTORE",
            "ZINTERSTORE",
            "ZUNIONSTORE",
            "ZRANGESTORE",
            "GEOSEARCHSTORE",
        ],
    ),
    (Effect::Derives, STORED, Refused::Zero, &["SORT", "GEORADIUS", "GEORADIUSBYMEMBER"]),
    (Effect::AddsDerived, FIRST, Refused::Ok, &["PFMERGE"]),
    (Effect::AddsDerived, SECOND, Refused::Zero, &["SMOVE"]),
    (Effect::AddsDerived, SECOND, Refused::Nil, &["LMOVE", "RPOPLPUSH", "BLMOVE", "BRPOPLPUSH"]),
    (Effect::Replaces, FIRST, Refused::Ok, &["JSON.SET"]),
    (Effect::Adds, FIRST, Refused::Ok, &["JSON.MERGE"]),
    (Effect::Adds, Keys::range(1, -1, 3), Refused::Ok, &["JSON.MSET"]),
];

/// Commands that change how long their first argument lives.
pub(super) const EXPIRING: &[&str] = &["EXPIRE", "PEXPIRE", "EXPIREAT", "PEXPIREAT", "PERSIST"];

/// Commands that a server may describe as writing to a key, and that put no data into it: they only take away,
/// change how long a part of it lives, or keep account of who has read what.
const NOT_FILLS: &[&str] = &[
    "HEXPIRE",
    "HPEXPIRE",
    "HEXPIREAT",
    "HPEXPIREAT",
    "HPERSIST",
    "DEL",
    "UNLINK",
    "DELEX",
    "DELIFEQ",
    "HDEL",
    "LREM",
    "LTRIM",
    "SREM",
    "VREM",
    "ZREM",
    "ZREMRANGEBYLEX",
    "ZREMRANGEBYRANK",
    "ZREMRANGEBYSCORE",
    "XDEL",
    "XDELEX",
    "XTRIM",
    "XACK",
    "XACKDEL",
    "XCLAIM",
    "XAUTOCLAIM",
    "XGROUP",
    "XSETID",
    "XCFGSET",
    "MIGRATE",
];

/// All others.
const OTHERS: &[(&str, Command)] = &[
    ("ASOF", Command::Asof),
    ("AFTER", Command::After),
    ("FENCE", Command::Fence),
    ("MULTI", Command::Multi),
    ("EXEC", Command::Exec),
    ("DISCARD", Command::Discard),
    ("WATCH", Command::Watch),
    ("UNWATCH", Command::Unwatch),
    ("SELECT", Command::Select),
    ("AUTH", Command::Auth),
    ("HELLO", Command::Hello),
    ("CLIENT", Command::Client),
    ("RESET", Command::Reset),
    ("QUIT", Command::Quit),
    // Not flagged as blocking by every server, and about the connection's own writes.
    ("WAIT", Command::Wait),
    ("WAITAOF", Command::Wait),
    ("XREAD", Command::Blocking),
    ("XREADGROUP", Command::Blocking),
    // They take away. A server older than Redis 7 does not say so.
    ("BLPOP", Command::Blocking),
    ("BRPOP", Command::Blocking),
    ("BLMPOP", Command::Blocking),
    ("BZPOPMIN", Command::Blocking),
    ("BZPOPMAX", Command::Blocking),
    ("BZMPOP", Command::Blocking),
    // About the connection, by their category, but they leave no trace on it.
    ("PING", Command::Plain),
    ("ECHO", Command::Plain),
    ("COMMAND", Command::Plain),
    // They subscribe to nothing.
    ("PUBLISH", Command::Plain),
    ("SPUBLISH", Command::Plain),
    ("PUBSUB", Command::Plain),
    ("SUBSCRIBE", Command::Subscribe),
    ("PSUBSCRIBE", Command::Subscribe),
    ("SSUBSCRIBE", Command::Subscribe),
    ("UNSUBSCRIBE", Command::Subscribe),
    ("PUNSUBSCRIBE", Command::Subscribe),
    ("SUNSUBSCRIBE", Command::Subscribe),
    ("MONITOR", Command::Monitor),
    ("SYNC", Command::Forbidden),
    ("PSYNC", Command::Forbidden),
    ("REPLCONF", Command::Forbidden),
    // Would move guarded keys to another db under the fence's feet.
    ("SWAPDB", Command::Forbidden),
    // State of the connection.
    ("READONLY", Command::Unknown),
    ("READWRITE", Command::Unknown),
    ("ASKING", Command::Unknown),
    // Can be slow, or must get through while Redis is busy with somebody's script.
    ("DEBUG", Command::Pinned),
    ("PFDEBUG", Command::Pinned),
    ("FUNCTION", Command::Pinned),
    ("SHUTDOWN", Command::Pinned),
    ("SCRIPT", Command::Pinned),
    ("SCRIPT|LOAD", Command::Plain),
    ("SCRIPT|EXISTS", Command::Plain),
    ("SCRIPT|FLUSH", Command::Plain),
    // The connection's scripts stop at breakpoints from then on.
    ("SCRIPT|DEBUG", Command::Unknown),
];
