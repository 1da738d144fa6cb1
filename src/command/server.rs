//! What a server says of its commands: the reply to `COMMAND`.
//!
//! Since Redis 7 an entry has the specifications of the command's keys, and those of the commands within a
//! container (`XGROUP CREATE`). Older servers, and modules, say where the first and the last key are, and whether the
//! command writes.

use redis_protocol::resp2::types::{BytesFrame as Reply, Resp2Frame};

use super::fork::Fork;
use super::keys::Word;
use super::{Begin, Command, Effect, FillForm, KeySpec, Keys, Miss, Read, Refused, Route, Syntax};

/// A command as the server describes it.
#[derive(Debug)]
pub(super) struct Described<'a> {
    /// In upper case; within a container `CONTAINER|NAME`.
    pub name: String,
    /// How many arguments it takes; if negative, at least.
    pub arity: i16,
    parts: &'a [Reply],
}

/// The commands of a reply to `COMMAND`, those within containers included.
pub(super) fn commands(reply: &Reply) -> Vec<Described<'_>> {
    let mut commands = Vec::new();
    for entry in elements(reply) {
        commands.extend(Described::new(entry));
        let within = elements(entry).get(9).map(elements).unwrap_or_default();
        commands.extend(within.iter().filter_map(Described::new));
    }
    commands
}

/// What a command does to a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    /// It reads it.
    Reads,
    /// It puts another value into it.
    Replaces,
    /// It adds to its value, or changes it.
    Adds,
    /// It takes away.
    TakesAway,
    /// It looks like a key, and is none.
    Nothing,
}

impl<'a> Described<'a> {
    fn new(entry: &'a Reply) -> Option<Self> {
        // name, arity, flags, first key, last key, step, categories, tips, key specifications, commands within
        let parts = elements(entry);
        let name = parts.first()?.as_str()?.to_ascii_uppercase();
        let arity = number(parts.get(1))?.try_into().unwrap_or(0);
        parts.get(2)?;
        Some(Self { name, arity, parts })
    }

    fn is(&self, flag: &str) -> bool {
        self.parts.get(2).is_some_and(|flags| has(flags, flag))
    }

    fn is_in(&self, category: &str) -> bool {
        self.parts.get(6).is_some_and(|categories| has(categories, category))
    }

    fn is_container(&self) -> bool {
        self.parts.get(9).is_some_and(|within| !elements(within).is_empty())
    }

    /// What it is to the proxy, as far as the server knows.
    pub fn command(&self) -> (Command, Fork) {
        let fork = if self.is_container() { Fork::Container } else { Fork::None };
        (self.alone(), fork)
    }

    fn alone(&self) -> Command {
        let Some(route) = self.route() else { return Command::Unknown };
        let roles = self.roles();
        let of = |wanted: &[Role]| {
            Keys::of(roles.iter().filter(|(role, _)| wanted.contains(role)).map(|(_, spec)| *spec))
        };
        let fills = of(&[Role::Replaces, Role::Adds]);
        let reads = of(&[Role::Reads]);
        if self.is("write") && !fills.is_none() && !self.takes_away() {
            let adds = roles.iter().any(|(role, _)| *role == Role::Adds);
            let effect = match (adds, reads.is_none()) {
                (false, true) => Effect::Replaces,
                (true, true) => Effect::Adds,
                (false, false) => Effect::Derives,
                (true, false) => Effect::AddsDerived,
            };
            let (refused, syntax) = (Refused::Error, Syntax::Other);
            return Command::Fill(FillForm { keys: fills, effect, refused, syntax, route });
        }
        // A module's key is described as written to whatever its command does.
        let reads = if self.is("module") { of(&[Role::Reads, Role::Adds]) } else { reads };
        if !self.is("write") && !reads.is_none() && route != Route::Blocking {
            return Command::Read(Read {
                keys: reads,
                miss: Miss::Unknown,
                route,
                changes: false,
                expires: false,
            });
        }
        route.into()
    }

    /// None for what changes the state of its connection.
    fn route(&self) -> Option<Route> {
        if self.is("blocking") {
            Some(Route::Blocking)
        } else if self.is_in("@connection") || self.is_in("@transaction") {
            // What the proxy does not know of these, by a name that the server was told to give it
            // (rename-command), would change the state of everybody's connection.
            None
        } else if self.is("pubsub") && !self.is("fast") {
            // PUBLISH is fast and plain; what is left subscribes, or ends a subscription.
            None
        } else if self.is("admin") {
            // Slow, or about connections: not on a shared one.
            Some(Route::Pin)
        } else {
            Some(Route::Lane)
        }
    }

    /// A module's command that writes only to take away: nothing but its name tells.
    fn takes_away(&self) -> bool {
        const ENDINGS: &[&str] =
            &["DEL", "FORGET", "CLEAR", "RESET", "DELETERULE", "ARRPOP", "ARRTRIM", "ARRDEL"];
        self.is("module") && self.name.rsplit_once('.').is_some_and(|(_, name)| ENDINGS.contains(&name))
    }

    fn roles(&self) -> Vec<(Role, KeySpec)> {
        if self.is("module") && self.is("movablekeys") {
            // It tells where its keys are only when it is asked about a request.
            return vec![(self.role_by_flags(), KeySpec::Anywhere)];
        }
        match self.parts.get(8) {
            Some(specs) => elements(specs).iter().filter_map(spec).collect(),
            None => self.range().map(|spec| (self.role_by_flags(), spec)).into_iter().collect(),
        }
    }

    fn role_by_flags(&self) -> Role {
        if self.is("write") { Role::Adds } else { Role::Reads }
    }

    /// First key, last key and step, where there are no specifications.
    fn range(&self) -> Option<KeySpec> {
        if self.is("movablekeys") {
            return Some(KeySpec::Anywhere);
        }
        let [first, last, step] = [3, 4, 5].map(|n| number(self.parts.get(n)));
        let first = u16::try_from(first?).ok().filter(|first| *first > 0)?;
        // From the first key on, as in a specification.
        let last = if last? < 0 { last? } else { last? - i64::from(first) };
        let step = u16::try_from(step?).unwrap_or(1);
        Some(KeySpec::Range { begin: Begin::At(first), last: i16::try_from(last).ok()?, step, limit: 0 })
    }
}

/// A key specification: what is done to the keys, and where they are. What cannot be read may be anywhere.
fn spec(spec: &Reply) -> Option<(Role, KeySpec)> {
    let flags = field(spec, "flags")?;
    let place = if has(flags, "incomplete") { None } else { place(spec) };
    let role = role(flags);
    (role != Role::Nothing).then_some((role, place.unwrap_or(KeySpec::Anywhere)))
}

fn role(flags: &Reply) -> Role {
    let is = |flag: &str| has(flags, flag);
    if is("not_key") {
        Role::Nothing
    } else if is("RO") {
        Role::Reads
    } else if is("OW") {
        Role::Replaces
    } else if is("RM") || (is("RW") && !is("insert") && !is("update")) {
        Role::TakesAway
    } else {
        Role::Adds
    }
}

fn place(spec: &Reply) -> Option<KeySpec> {
    let (begin, find) = (field(spec, "begin_search")?, field(spec, "find_keys")?);
    let details = field(begin, "spec")?;
    let begin = match field(begin, "type")?.as_str()? {
        "index" => Begin::At(small(details, "index")?),
        "keyword" => {
            let word = Word::new(field(details, "keyword")?.as_str()?)?;
            Begin::Word(word, number(field(details, "startfrom"))?.try_into().ok()?)
        }
        _ => return None,
    };
    let details = field(find, "spec")?;
    Some(match field(find, "type")?.as_str()? {
        "range" => KeySpec::Range {
            begin,
            last: number(field(details, "lastkey"))?.try_into().ok()?,
            step: small(details, "keystep")?,
            limit: small(details, "limit")?,
        },
        "keynum" => KeySpec::Count {
            begin,
            number: small(details, "keynumidx")?,
            first: small(details, "firstkey")?,
            step: small(details, "keystep")?,
        },
        _ => return None,
    })
}

/// The value of a name in a map, which in RESP2 is an array.
fn field<'a>(map: &'a Reply, name: &str) -> Option<&'a Reply> {
    elements(map).chunks_exact(2).find(|pair| pair[0].as_str() == Some(name)).map(|pair| &pair[1])
}

fn elements(reply: &Reply) -> &[Reply] {
    if let Reply::Array(elements) = reply { elements } else { &[] }
}

fn number(reply: Option<&Reply>) -> Option<i64> {
    if let Some(Reply::Integer(number)) = reply { Some(*number) } else { None }
}

fn small(map: &Reply, name: &str) -> Option<u16> {
    number(field(map, name))?.try_into().ok()
}

fn has(list: &Reply, word: &str) -> bool {
    elements(list).iter().any(|element| element.as_str() == Some(word))
}
