//! Fills: judged when the whole command is there, and sent, capped or answered in place.

use std::borrow::Cow;
use std::collections::HashSet;
use std::rc::Rc;
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::{Bytes, BytesMut};
use smallvec::SmallVec;

use super::cap::{Capped, cap, own_ttl, put_shorten};
use super::expect::{Delivery, Expected, Fills, Meaning};
use super::gate::{Admission, Filling, Refusal};
use super::held::Held;
use super::link::{Introduction, Link};
use super::proof::{Proof, Stated};
use super::route::LANE_REQUEST;
use super::session::{Session, Step};
use super::transaction::{NamedKey, QueuedExpiry, QueuedFill, Transaction, owned};
use crate::cache::{AbandonedFill, Fate};
use crate::command::{Command, Effect, FillForm, Route, Syntax, WrongNumber, refusal};
use crate::fence::KeyHash;
use crate::guard::Guards;
use crate::resp::{Arguments, RequestScanner, Scanned, put_request};

const BLOCKING: &str = "-FENCE cachefence: a command that waits cannot fill a guarded key; use the one that does \
                        not (LMOVE, RPOPLPUSH)\r\n";

/// What the gate said of the keys of one or several fills.
#[derive(Default)]
struct Admitted<'a> {
    /// In flight.
    fills: Fills,
    /// To live for so many milliseconds at most.
    caps: SmallVec<[(&'a [u8], u64); 1]>,
    /// What was refused: nothing, in nearly all cases.
    refused: Option<Box<Refused>>,
}

/// The keys of a fill that were refused.
struct Refused {
    keys: HashSet<KeyHash>,
    /// Those of them that are to be deleted as well.
    deleted: HashSet<KeyHash>,
    /// Why the last of them was.
    why: Refusal,
}

/// A fill to be judged.
struct Judged<'a, 'k> {
    form: FillForm,
    keys: &'k [NamedKey<'k>],
    proof: &'a Proof,
    can_cap: bool,
    /// Where it may go, if it is a script, which can go elsewhere.
    dbs: &'a [u32],
    /// The TTL in milliseconds that it brings along: only asked for where there is a limit.
    own_ttl: &'a dyn Fn() -> Option<u64>,
}

impl Session {
    /// A fill outside of a transaction.
    pub(super) fn fill(&mut self, form: FillForm, arguments: Arguments<'_>, stated: Option<&Stated>) -> Step {
        let guards = self.gate.guards.load();
        let keys = self.guarded_keys(&guards, form, arguments);
        if keys.is_empty() || (form.route == Route::Blocking && self.gate.observe) {
            return self.take_plainly(form.route.into(), arguments);
        }
        if form.route == Route::Blocking {
            // Judged now, it would fill when nobody judges.
            return self.own(BLOCKING);
        }
        let wants_pin = form.route == Route::Pin || arguments.bytes().len() > LANE_REQUEST;
        let Some(link) = self.link(wants_pin) else { return Step::Wait };
        if let Err(step) = self.introduced(&link) {
            return step;
        }
        let proof = match self.proof(&guards, form, arguments, &keys, stated) {
            Ok(proof) => proof,
            Err(error) => return self.refuse_asof(wrong_evidence(&error)),
        };
        let can_cap = self.can_cap(form, arguments);
        let own_ttl = || own_ttl(form.syntax, arguments);
        let dbs = if form.route == Route::Pin { self.dbs() } else { SmallVec::new() };
        let judged = Judged { form, keys: &keys, proof: &proof, can_cap, dbs: &dbs, own_ttl: &own_ttl };
        let admitted = self.admit(&guards, &link, judged);
        match &admitted.refused {
            Some(refused) if form.syntax != Syntax::MSet => {
                self.gate.finish(&admitted.fills);
                self.end_large();
                let deleted = refused.deleted(form, &keys);
                let reply = self.refusal_reply(form, arguments, &refused.why);
                // A large fill that is refused costs its connection; then nothing is outstanding, and any will do.
                let open = deleted.is_empty() || link.is_open();
                let link = if open { link } else { self.link(false).unwrap_or(link) };
                match self.delete_refused(&link, &deleted, Some(reply)) {
                    Some(reply) => self.own(reply),
                    None => Step::Done,
                }
            }
            Some(refused) => {
                self.delete_refused(&link, &refused.deleted(form, &keys), None);
                self.send_rest(&link, form, arguments, admitted)
            }
            _ => self.send_admitted(&link, form, arguments, admitted),
        }
    }

    /// The keys of a fill that have guards, each once: of pairs with the same key the last one counts, and one
    /// verdict is for all of them.
    pub(super) fn guarded_keys<'a>(
        &self,
        guards: &Guards,
        form: FillForm,
        arguments: Arguments<'a>,
    ) -> SmallVec<[NamedKey<'a>; 1]> {
        let mut keys: SmallVec<[NamedKey<'a>; 1]> = SmallVec::new();
        let mut dbs = self.dbs();
        if form.route == Route::Pin {
            // A script can go wherever it likes.
            dbs.extend(guards.dbs());
        }
        for db in dbs {
            let Some(db) = form.syntax.db(arguments, db) else { continue };
            for key in form.keys.places(arguments).filter_map(|place| arguments.get(place)) {
                if let Some(guarded) = self.gate.guarded_by(guards, db, key) {
                    keys.push((Cow::Borrowed(key), guarded));
                }
            }
        }
        if !keys.is_empty() && form.syntax.is_wrong(arguments) {
            // Redis does none of it, and says why.
            return SmallVec::new();
        }
        if keys.len() > 1 {
            let mut seen = HashSet::with_capacity(keys.len());
            keys.retain(|(_, guarded)| seen.insert(guarded.hash));
        }
        keys
    }

    /// Whether a command that follows the fill can give its key a TTL: in the client's db, whichever it is, it can.
    fn can_cap(&self, form: FillForm, arguments: Arguments<'_>) -> bool {
        let own = self.client.db.get().unwrap_or(u32::MAX);
        form.syntax.db(arguments, own) == Some(own)
    }

    fn admit<'k>(&self, guards: &Guards, link: &Link, judged: Judged<'_, 'k>) -> Admitted<'k> {
        let Judged { form, keys, proof, can_cap, dbs, own_ttl } = judged;
        let mut admitted = Admitted::default();
        for (n, (key, guarded)) in keys.iter().enumerate() {
            let id = link.fill_id();
            let (evidence, version) = (proof.position.as_ref(), proof.versions.get(n).copied().flatten());
            let in_reach = form.route != Route::Pin || dbs.contains(&guarded.db);
            let conn = self.client.id;
            let filling = Filling { key, guarded, id, conn, evidence, version, form, can_cap, in_reach };
            match self.gate.admit(guards, &filling) {
                Admission::Refuse(refusal) => {
                    admitted.refuse(guarded.hash, refusal);
                    continue;
                }
                // It says itself that it lives no longer.
                Admission::Cap(ttl) if own_ttl().is_some_and(|own| own <= ttl) => {}
                Admission::Cap(ttl) => admitted.caps.push((key, ttl)),
                Admission::Forward => {}
            }
            let fill = AbandonedFill::new(id, key, guarded);
            admitted.fills.push(fill.replacing(form.effect == Effect::Replaces));
        }
        admitted
    }

    fn send_admitted(
        &mut self,
        link: &Link,
        form: FillForm,
        arguments: Arguments<'_>,
        admitted: Admitted<'_>,
    ) -> Step {
        let fills = Meaning::Fills(admitted.fills);
        let mut rewritten = BytesMut::new();
        let capped = match admitted.caps.as_slice() {
            [] => Capped::Rewritten,
            // What has gone out in part cannot be written differently.
            _ if arguments.is_under_way() => Capped::Afterwards,
            [(_, ttl)] => cap(form.syntax, arguments, *ttl, unix_ms(), &mut rewritten),
            _ => Capped::Afterwards,
        };
        let delivery = if capped == Capped::SetNxAsSet { Delivery::SetNx } else { Delivery::Forward };
        let bytes = if rewritten.is_empty() { arguments.unsent() } else { &rewritten };
        let caps = if capped == Capped::Afterwards { admitted.caps.as_slice() } else { &[] };
        self.send_fill(link, bytes, delivery, caps, fills);
        Step::Done
    }

    /// Sends a command that fills, and shortens the TTLs of what it has put in. The fills are in flight until the last
    /// of it is answered: if the connection breaks in between, their keys are deleted.
    fn send_fill(
        &self,
        link: &Link,
        bytes: &[u8],
        delivery: Delivery,
        caps: &[(&[u8], u64)],
        fills: Meaning,
    ) {
        let write = |out: &mut BytesMut| out.extend_from_slice(bytes);
        let Some(((last, last_ttl), others)) = caps.split_last() else {
            return link.send(write, self.expect_as(delivery, fills));
        };
        link.send(write, self.expect_as(delivery, Meaning::None));
        for (key, ttl) in others {
            link.send(|out| put_shorten(key, *ttl, out), Expected::hidden(&self.client, Meaning::None));
        }
        link.send(|out| put_shorten(last, *last_ttl, out), Expected::hidden(&self.client, fills));
    }

    /// MSET: the pairs that were not refused.
    fn send_rest(
        &mut self,
        link: &Link,
        form: FillForm,
        arguments: Arguments<'_>,
        admitted: Admitted<'_>,
    ) -> Step {
        let Some(refused) = admitted.refused else { return Step::Done };
        let dbs = self.dbs();
        let is_refused = |key: &[u8]| {
            let mut guarded = dbs.iter().filter_map(|db| self.gate.guarded(*db, key));
            guarded.any(|key| refused.keys.contains(&key.hash))
        };
        let kept = (1..arguments.len()).step_by(2).filter(|n| !arguments.get(*n).is_some_and(is_refused));
        let pairs = kept.flat_map(|n| [arguments.get(n), arguments.get(n + 1)]).flatten();
        let words: Vec<&[u8]> = std::iter::once(&b"MSET"[..]).chain(pairs).collect();
        let reply = self.refusal_reply(form, arguments, &refused.why);
        if words.len() == 1 {
            return self.own(reply);
        }
        let mut request = BytesMut::new();
        put_request(&mut request, &words);
        let fills = Meaning::Fills(admitted.fills);
        self.send_fill(link, &request, Delivery::Replace(reply), &admitted.caps, fills);
        Step::Done
    }

    /// Whether a key can be deleted on a link: the client's connection may be elsewhere, or none has room for it.
    fn in_reach(&self, link: &Link, (_, guarded): &NamedKey<'_>) -> bool {
        link.is_open() && self.client.db.get() == Some(guarded.db)
    }

    /// Deletes what refused fills leave behind. As if it were a fill: should the connection break before Redis has
    /// answered, it is done again.
    ///
    /// The refusal goes out when all is deleted, and comes back where nothing was sent that it could follow: a client that
    /// reads it, and fills the key by another connection, must not lose that fill to the deletion.
    fn delete_refused(
        &self,
        link: &Link,
        keys: &[&NamedKey<'_>],
        mut refusal: Option<Bytes>,
    ) -> Option<Bytes> {
        let (here, elsewhere): (Vec<&NamedKey<'_>>, Vec<&NamedKey<'_>>) =
            keys.iter().partition(|named| self.in_reach(link, named));
        let deletion = |(key, guarded): &NamedKey<'_>| AbandonedFill::new(link.fill_id(), key, guarded);
        for key in elsewhere {
            self.gate.upstreams.abandon(Fate::Unfinished, vec![deletion(key)]);
        }
        for (n, named) in here.iter().enumerate() {
            let is_last = n + 1 == here.len();
            let refusal = refusal.take_if(|_| is_last && !self.muted);
            let delivery = refusal.map_or(Delivery::Hidden, Delivery::Instead);
            let meaning = Meaning::Fills([deletion(named)].into());
            let expected = Expected { client: self.client.clone(), delivery, meaning };
            link.send(|out| put_request(out, &[b"UNLINK", &named.0]), expected);
        }
        refusal
    }

    /// Whether a fill may go out on a link: Redis knows it by name. Otherwise it waits, or was answered.
    pub(super) fn introduced(&mut self, link: &Rc<Link>) -> Result<(), Step> {
        let tried = self.introducing.take();
        if tried.as_ref().is_some_and(|before| before.is_closed()) {
            // Not tried again and again while Redis is away.
            return Err(
                self.own(format!("-ERR cachefence: upstream {}: not connected\r\n", self.gate.address))
            );
        }
        match link.introduction() {
            Introduction::Done => return Ok(()),
            Introduction::First | Introduction::Again => {}
            Introduction::Refused(error) if tried.is_some() || is_denied(&error) => {
                return Err(self.refuse_unknown(&error));
            }
            // It was busy, with a script or with loading its data, and may not be any more.
            Introduction::Refused(_) => link.introduce_again(&self.client),
        }
        link.wait(&self.client);
        self.introducing = Some(link.clone());
        Err(Step::Wait)
    }

    fn refusal_reply(&self, form: FillForm, arguments: Arguments<'_>, why: &Refusal) -> Bytes {
        refusal(form, arguments, (why.reply, &why.error), self.client.protocol.get())
    }

    /// A fill on a connection that Redis does not let us name: if the connection broke, nobody could tell
    /// that the fill is gone.
    fn refuse_unknown(&self, error: &str) -> Step {
        if !error.starts_with("NOPERM") {
            // What Redis would say to the fill itself.
            return self.own(format!("-{error}\r\n"));
        }
        self.own(format!("-FENCE cachefence: a fill of a guarded key needs the rights client|setname and client|id: {error}\r\n"))
    }

    /// `ASOF evidence command ...`
    pub(super) fn asof(&mut self, arguments: Arguments<'_>) -> Step {
        if arguments.len() < 3 {
            return self.refuse_asof("-ERR wrong number of arguments for 'asof' command\r\n".into());
        }
        let form = match self.gate.commands.load().take(arguments.skip(2)) {
            Ok(Command::Fill(form)) => form,
            Ok(_) => {
                return self
                    .refuse_asof("-ERR cachefence: ASOF takes evidence and a fill, such as SET\r\n".into());
            }
            Err(WrongNumber(name)) => {
                return self.refuse_asof(format!("-ERR wrong number of arguments for '{name}' command\r\n"));
            }
        };
        let stated = match Stated::read(arguments.get(1).unwrap_or_default()) {
            Ok(stated) => stated,
            Err(error) => return self.refuse_asof(wrong_evidence(&error)),
        };
        let request = arguments.request_from(2);
        let mut scanner = RequestScanner::default();
        let Ok(Scanned::Request(_)) = scanner.scan(&request) else { return Step::Done };
        let arguments = scanner.arguments(&request);
        if self.transaction.is_some() {
            self.queue_fill(form, arguments, Some(&stated))
        } else {
            self.fill(form, arguments, Some(&stated))
        }
    }

    fn refuse_asof(&mut self, error: String) -> Step {
        if let Some(transaction) = &mut self.transaction {
            transaction.aborted = true;
        }
        self.own(error)
    }

    /// A fill inside MULTI: queued in Redis, judged at EXEC.
    pub(super) fn queue_fill(
        &mut self,
        form: FillForm,
        arguments: Arguments<'_>,
        stated: Option<&Stated>,
    ) -> Step {
        let guards = self.gate.guards.load();
        let keys = self.guarded_keys(&guards, form, arguments);
        if !keys.is_empty() && self.awaits_begin() {
            return Step::Wait;
        }
        let proof = match self.proof(&guards, form, arguments, &keys, stated) {
            Ok(proof) => proof,
            Err(error) => return self.refuse_asof(wrong_evidence(&error)),
        };
        let can_cap = self.can_cap(form, arguments);
        let Some(link) = self.link(true) else { return Step::Wait };
        let queued = keys.iter().map(|(key, guarded)| AbandonedFill::new(link.fill_id(), key, guarded));
        let meaning = if keys.is_empty() { Meaning::None } else { Meaning::Queued(queued.collect()) };
        link.send(|out| out.extend_from_slice(arguments.unsent()), self.expect(meaning));
        if let (false, Some(transaction)) = (keys.is_empty(), &mut self.transaction) {
            let own_ttl = own_ttl(form.syntax, arguments);
            transaction.queue_fill(QueuedFill { keys: owned(keys), form, proof, can_cap, own_ttl });
        }
        Step::Done
    }

    /// Judges all that is queued, and limits what changes how long keys live. With the keys that are to be deleted.
    fn admit_queued<'a>(
        &self,
        link: &Link,
        transaction: &'a Transaction,
    ) -> (Admitted<'a>, Vec<&'a NamedKey<'static>>) {
        let guards = self.gate.guards.load();
        let mut all = Admitted::default();
        let mut deleted = Vec::new();
        let dbs: SmallVec<[u32; 2]> = transaction.dbs.iter().copied().chain(self.dbs()).collect();
        for QueuedFill { keys, form, proof, can_cap, own_ttl } in &transaction.fills {
            let (form, can_cap, dbs) = (*form, *can_cap, dbs.as_slice());
            let own_ttl = || *own_ttl;
            let judged = Judged { form, keys, proof, can_cap, dbs, own_ttl: &own_ttl };
            let Admitted { fills, caps, refused } = self.admit(&guards, link, judged);
            deleted.extend(refused.iter().flat_map(|refused| refused.deleted(form, keys)));
            all.fills.extend(fills);
            all.caps.extend(caps);
            all.refused = all.refused.or(refused);
        }
        // After the fills, whose caps count.
        for QueuedExpiry { keys, own_ttl } in &transaction.expiries {
            let (fills, limit) = self.limit(link, keys);
            all.fills.extend(fills);
            if let (Some(limit), [(key, _), ..]) = (limit, keys.as_slice())
                && own_ttl.is_none_or(|own| own > limit)
            {
                all.caps.push((key, limit));
            }
        }
        (all, deleted)
    }

    /// EXEC: all queued fills are judged now. One that is refused aborts the transaction, as a WATCH that failed.
    pub(super) fn execute(&mut self, arguments: Arguments<'_>) -> Step {
        let Some(link) = self.link(true) else { return Step::Wait };
        if matches!(link.introduction(), Introduction::First | Introduction::Again) {
            link.wait(&self.client);
            return Step::Wait;
        }
        let Some(transaction) = self.transaction.take() else { return Step::Done };
        self.watching = false;
        // Whatever becomes of an EXEC, it ends a WATCH.
        self.client.hold(Held::WATCHED, false);
        let (all, deleted) = self.admit_queued(&link, &transaction);
        let nameless = matches!(link.introduction(), Introduction::Refused(_));
        let unknown = nameless && !(transaction.fills.is_empty() && all.caps.is_empty());
        // The commands that cap would come after the EXEC, in another db perhaps.
        let refused = all.refused.is_some()
            || (!all.caps.is_empty() && !transaction.dbs.is_empty())
            || transaction.reads.iter().any(|guards| self.gate.bypasses(guards))
            || transaction.youngest < self.gate.guards.load().youngest();
        if transaction.aborted || unknown || refused {
            self.gate.finish(&all.fills);
            let reply: &[u8] = if refused {
                self.client.protocol.get().nil_array()
            } else {
                b"-EXECABORT Transaction discarded because of previous errors.\r\n"
            };
            let reply = Bytes::from_static(reply);
            // What comes next must not meet a transaction that Redis would not end.
            self.barrier = true;
            let follow = !self.muted && deleted.iter().any(|named| self.in_reach(&link, named));
            let (discarded, deletions) = if follow {
                (Expected::hidden(&self.client, Meaning::Discarded), Some(reply))
            } else {
                (self.expect_as(Delivery::Replace(reply), Meaning::Discarded), None)
            };
            link.send(|out| put_request(out, &[b"DISCARD"]), discarded);
            self.delete_refused(&link, &deleted, deletions);
            return Step::Done;
        }
        let fills = match transaction.dbs.last() {
            // Which lane is next, and which keys are guarded, depends on the answer.
            Some(db) => {
                (self.lane, self.barrier) = (None, true);
                Meaning::Executed(all.fills.into_vec().into(), *db)
            }
            None => Meaning::Fills(all.fills),
        };
        self.send_fill(&link, arguments.bytes(), Delivery::Forward, &all.caps, fills);
        Step::Done
    }
}

impl Admitted<'_> {
    fn refuse(&mut self, key: KeyHash, why: Refusal) {
        let delete = why.delete;
        let refused = match &mut self.refused {
            Some(refused) => {
                refused.why = why;
                refused
            }
            none => {
                let (keys, deleted) = Default::default();
                none.insert(Box::new(Refused { keys, deleted, why }))
            }
        };
        refused.keys.insert(key);
        if delete {
            refused.deleted.insert(key);
        }
    }
}

impl Refused {
    /// The keys of a fill that are to be deleted because it was refused. What a refused part leaves behind may be the
    /// parts before it, and a torn value must not stay.
    fn deleted<'a, 'k>(&self, form: FillForm, keys: &'a [NamedKey<'k>]) -> Vec<&'a NamedKey<'k>> {
        keys.iter().filter(|(_, key)| form.is_part() || self.deleted.contains(&key.hash)).collect()
    }
}

/// Whether Redis will say the same the next time.
fn is_denied(error: &str) -> bool {
    error.starts_with("NOPERM") || error.starts_with("NOAUTH")
}

fn wrong_evidence(error: &str) -> String {
    format!("-ERR cachefence: ASOF: {error}\r\n")
}

fn unix_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64
}
