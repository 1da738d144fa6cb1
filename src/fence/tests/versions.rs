//! Version evidence: each rule by an example, and all of them against a list of every state that the row ever had.

use proptest::prelude::*;

use super::key::KeyState;
use super::version::Versions;
use super::*;

const GUARD: GuardId = GuardId(0);
const GUARDS: &[GuardId] = &[GUARD];

fn v(version: i64) -> Option<Version> {
    Some(Version(version))
}

fn updated(old: impl Into<Option<i64>>, new: impl Into<Option<i64>>) -> RowChange {
    RowChange::Updated { old: old.into().map(Version), new: new.into().map(Version) }
}

fn claim(version: i64) -> VersionClaim {
    let vouches = Vouches::LastWriteAndNewer;
    VersionClaim { guard: GUARD, version: Version(version), step: 1, only_equal: false, vouches }
}

impl Table {
    /// A write of the row at a position, in one transaction.
    fn row(&self, lsn: u64, changes: &[RowChange]) {
        let (first, rest) = changes.split_first().expect("a change");
        let mut all = RowChanges::new(GUARD, *first);
        rest.iter().for_each(|change| all.add(*change));
        self.fence.write_row(ALICE, Write { xid: Xid(lsn), lsn: Lsn(lsn) }, &all, &mut Vec::new());
    }

    fn judge_claim(&self, claim: VersionClaim) -> Verdict {
        self.judge(ALICE, &Fill { guards: GUARDS, version: Some(claim), ..self.fill(999) })
    }

    fn version(&self, version: i64) -> Verdict {
        self.judge_claim(claim(version))
    }

    /// A history has passed, and all that was written is settled.
    fn pass(&mut self, lsn: u64) {
        let text = format!("{lsn}:{lsn}:");
        self.settle(lsn, &text);
        self.now += 60_000;
        self.settle(lsn, &text);
    }
}

/// Good or stale, nobody has seen which.
const UNSEEN: Verdict = Verdict::Unproven(Unproven::VersionUnseen);

#[test]
fn a_version_that_was_seen_to_grow_vouches() {
    let table = Table::new(limits());
    assert_eq!(table.version(5), UNPROVEN, "nothing is known of the row");
    table.row(200, &[updated(4, 5)]);
    assert_eq!(table.version(4), superseded(200));
    assert_eq!(table.version(5), Verdict::Fresh);
    assert_eq!(table.version(6), Verdict::Fresh, "newer than the feed");
    table.row(300, &[updated(None, 6)]);
    assert_eq!(table.version(5), superseded(300));
    assert_eq!(table.version(6), Verdict::Fresh, "the one before is remembered");
}

#[test]
fn where_nothing_is_visible_before_it_is_applied_a_larger_version_proves_nothing() {
    let table = Table::new(limits());
    table.row(200, &[updated(4, 5)]);
    let claim = |version| VersionClaim { vouches: Vouches::LastWrite, ..claim(version) };
    assert_eq!(table.judge_claim(claim(4)), superseded(200));
    assert_eq!(table.judge_claim(claim(5)), Verdict::Fresh);
    assert_eq!(table.judge_claim(claim(6)), no_evidence(200));
}

#[test]
fn an_update_that_does_not_raise_it_vouches_for_nothing() {
    for old in [Some(5), None] {
        let table = Table::new(limits());
        table.row(200, &[updated(4, 5)]);
        // Someone's UPDATE in psql.
        table.row(300, &[updated(old, 5)]);
        assert_eq!(table.version(4), superseded(300));
        assert_eq!(table.version(5), no_evidence(300));
        assert_eq!(table.version(6), no_evidence(300));
        table.row(400, &[updated(old, 6)]);
        assert_eq!(table.version(5), superseded(400));
        assert_eq!(table.version(6), Verdict::Fresh);
        // And one that lowers it, until a later one is larger than all.
        table.row(500, &[updated(6, 3)]);
        table.row(600, &[updated(3, 6)]);
        assert_eq!(table.version(6), no_evidence(600));
        assert_eq!(table.version(5), superseded(600));
        table.row(700, &[updated(6, 7)]);
        assert_eq!(table.version(7), Verdict::Fresh);
    }
}

#[test]
fn a_write_that_hides_what_it_replaced_is_a_doubt_for_as_long_as_it_is_remembered() {
    let mut table = Table::new(limits());
    // It may have been 7, or 9.
    table.row(200, &[updated(None, 7)]);
    assert_eq!(table.version(7), UNSEEN);
    assert_eq!(table.version(8), UNSEEN);
    assert_eq!(table.version(6), superseded(200), "smaller objects all the same");
    table.row(300, &[updated(None, 8)]);
    assert_eq!(table.version(8), UNSEEN, "9 may have been replaced by 7");
    table.settle(250, "250:250:");
    table.now += 60_000;
    table.settle(300, "300:300:");
    assert_eq!(table.fence.floor(), Lsn(250));
    assert_eq!(table.version(8), Verdict::Fresh);
    assert_eq!(table.version(7), superseded(300));
}

#[test]
fn a_version_that_cannot_be_read_vouches_for_nothing() {
    let table = Table::new(limits());
    table.row(200, &[updated(4, 5)]);
    table.row(300, &[updated(5, None)]);
    assert_eq!(table.version(4), no_evidence(300));
    assert_eq!(table.version(6), no_evidence(300));
    table.row(400, &[updated(None, 6)]);
    assert_eq!(table.version(6), UNSEEN);
    assert_eq!(table.version(5), superseded(400));
}

#[test]
fn a_row_that_comes_back_has_to_exceed_what_was_there() {
    let mut table = Table::new(limits());
    table.row(150, &[RowChange::Inserted(v(1))]);
    assert_eq!(table.version(1), UNSEEN, "before this history another row may have been there");
    table.pass(150);
    table.row(200, &[RowChange::Inserted(v(1))]);
    assert_eq!(table.version(1), Verdict::Fresh);
    table.row(300, &[RowChange::Deleted(v(1))]);
    assert_eq!(table.version(1), no_evidence(300));
    assert_eq!(table.version(2), no_evidence(300));
    table.row(400, &[RowChange::Inserted(v(1))]);
    assert_eq!(table.version(1), no_evidence(400));
    table.row(450, &[RowChange::Deleted(v(1))]);
    table.row(500, &[RowChange::Inserted(v(2))]);
    assert_eq!(table.version(2), Verdict::Fresh);
    table.row(600, &[RowChange::Deleted(None), RowChange::Inserted(v(3))]);
    assert_eq!(table.version(3), Verdict::Fresh, "what is not told is remembered");

    table.pass(600);
    table.row(700, &[RowChange::Deleted(None)]);
    table.row(800, &[RowChange::Inserted(v(1))]);
    table.row(900, &[updated(1, 2)]);
    assert_eq!(table.version(2), no_evidence(900), "the row that was deleted may have had any");
}

#[test]
fn what_was_lowered_long_ago_is_forgotten() {
    let mut table = Table::new(limits());
    table.row(200, &[updated(8, 9)]);
    table.row(300, &[updated(9, 1)]);
    table.settle(300, "300:300:");
    table.now += 30_000;
    table.row(400, &[updated(1, 2)]);
    table.settle(400, "400:400:");
    assert_eq!(table.version(2), no_evidence(400), "9 may still come");
    table.now += 30_000;
    table.settle(400, "400:400:");
    assert_eq!(table.version(2), Verdict::Fresh);
}

#[test]
fn states_that_only_their_transaction_has_seen_count_too() {
    let table = Table::new(limits());
    table.row(200, &[updated(4, 6), updated(6, 5)]);
    assert_eq!(table.version(5), no_evidence(200));
    table.row(300, &[updated(5, 7), updated(7, 7)]);
    assert_eq!(table.version(7), no_evidence(300));
    table.row(400, &[updated(None, 8), updated(None, 9)]);
    assert_eq!(table.version(8), superseded(400));
    assert_eq!(table.version(9), Verdict::Fresh);
}

#[test]
fn what_tells_nothing_of_the_row_is_a_doubt_for_as_long_as_it_is_remembered() {
    for whole in [false, true] {
        let mut table = Table::new(limits());
        table.row(200, &[updated(4, 5)]);
        if whole {
            table.write_guard(0, 300, 300);
            assert_eq!(table.version(4), no_evidence(300), "what became of the row is not known");
        } else {
            table.write(ALICE, 300, 300);
            assert_eq!(table.version(4), superseded(200));
        }
        assert_eq!(table.version(5), no_evidence(300));
        table.row(400, &[updated(5, 6)]);
        assert_eq!(table.version(6), no_evidence(400));
        assert_eq!(table.version(5), superseded(400));
        // Perfect evidence of another kind counts as ever, but not against the version.
        let everything = Evidence::Lsn(Lsn(400));
        let fill = |version| {
            let version = Some(claim(version));
            Fill { guards: GUARDS, version, evidence: Some(&everything), ..table.fill(999) }
        };
        assert_eq!(table.judge(ALICE, &fill(6)), Verdict::Fresh);
        assert_eq!(table.judge(ALICE, &fill(5)), superseded(400));

        table.settle(350, "350:350:");
        table.now += 60_000;
        table.settle(400, "400:400:");
        assert_eq!(table.version(6), Verdict::Fresh);
    }
    // Before anything was told of the row.
    let table = Table::new(limits());
    table.write(ALICE, 200, 200);
    table.row(300, &[updated(4, 5)]);
    assert_eq!(table.version(5), no_evidence(300));
}

#[test]
fn a_key_that_others_may_feed_is_only_objected_to() {
    let table = Table::new(limits());
    table.row(200, &[updated(4, 5)]);
    let weak = |version| VersionClaim { vouches: Vouches::Nothing, ..claim(version) };
    assert_eq!(table.judge_claim(weak(5)), no_evidence(200));
    assert_eq!(table.judge_claim(weak(6)), no_evidence(200));
    assert_eq!(table.judge_claim(weak(4)), superseded(200));
    let others = |version| VersionClaim { guard: GuardId(1), ..claim(version) };
    assert_eq!(table.judge_claim(others(4)), no_evidence(200), "another table's versions");
}

#[test]
fn versions_that_were_cut_off_or_may_be_shifted() {
    let table = Table::new(limits());
    table.row(200, &[updated(1_000_000, 1_001_500)]);
    let cut = |version, step| table.judge_claim(VersionClaim { step, ..claim(version) });
    assert_eq!(cut(1_001_500, 1), Verdict::Fresh);
    assert_eq!(cut(1_001_000, 1), superseded(200));
    assert_eq!(cut(1_001_000, 1_000), no_evidence(200), "the last write's, perhaps");
    assert_eq!(cut(1_000_000, 1_000), superseded(200));
    assert_eq!(cut(1_002_000, 1_000), no_evidence(200), "rounded up, perhaps");
    assert_eq!(cut(1_003_000, 1_000), Verdict::Fresh);
    let shifted = |version| table.judge_claim(VersionClaim { only_equal: true, step: 1, ..claim(version) });
    assert_eq!(shifted(1_001_500), Verdict::Fresh);
    assert_eq!(shifted(1), no_evidence(200));
    assert_eq!(shifted(i64::MAX), no_evidence(200));
    table.row(300, &[updated(1_001_500, i64::MAX)]);
    assert_eq!(table.version(i64::MIN), superseded(300));
}

#[test]
fn a_lease_is_used_up_whatever_the_version_says() {
    let table = Table::new(limits());
    table.row(200, &[updated(4, 5)]);
    table.settle(200, "201:201:");
    table.miss(ALICE, 1);
    let fill = |version| Fill { guards: GUARDS, version: Some(claim(version)), ..table.fill(1) };
    assert_eq!(table.judge(ALICE, &fill(4)), superseded(200));
    assert_eq!(table.set(ALICE, 1), no_evidence(200));
}

#[test]
fn a_torn_value_stays_torn() {
    let table = Table::new(limits());
    table.settle(150, "150:150:");
    table.miss(ALICE, 1);
    table.row(200, &[updated(4, 5)]);
    assert_eq!(table.add(ALICE, 1), superseded(200));
    let rest = Fill { guards: GUARDS, version: Some(claim(5)), part: true, ..table.fill(1) };
    assert_eq!(table.judge(ALICE, &rest), TORN);
}

#[test]
fn memory_goes_with_the_history() {
    let mut table = Table::new(limits());
    let empty = table.fence.size();
    table.row(200, &[updated(4, 5)]);
    assert!(table.fence.size().bytes > empty.bytes + size_of::<Versions>());
    table.pass(200);
    table.fence.sweep(table.now);
    assert_eq!(table.fence.size(), empty);
    assert_eq!(table.version(4), UNPROVEN);
    table.row(300, &[updated(4, 5)]);
    table.fence.restart(Lsn(300));
    table.settle(300, "400:400:");
    assert_eq!(table.version(4), UNPROVEN);
    assert_eq!(size_of::<KeyState>(), 24);
}

// Against a list of every state.

/// A state of the row, or a write of its key that tells nothing of it.
#[derive(Clone, Debug)]
struct State {
    /// The end of the commit that began it.
    lsn: u64,
    /// None: there is no row, or a version that is no number.
    version: Option<i64>,
}

#[derive(Clone, Debug)]
enum Op {
    /// The row changes by so much, several times in one transaction; each old version is told or not.
    Update(Vec<(i64, bool)>),
    /// It gets a version that cannot be read.
    Spoil,
    Delete(bool),
    Insert(i64),
    Other,
    Whole,
    /// The feed brings so many commits.
    Deliver(u8),
    Pass(Millis),
    Sweep,
    Resend,
    /// A fill of a state, so many back from the newest: sure of itself or not.
    Fill(u8, Vouches),
}

fn op() -> impl Strategy<Value = Op> {
    let step = prop_oneof![12 => 1i64..3, 1 => Just(0i64), 1 => -3i64..0];
    let vouches = prop_oneof![
        4 => Just(Vouches::LastWriteAndNewer), 1 => Just(Vouches::LastWrite), 1 => Just(Vouches::Nothing)
    ];
    prop_oneof![
        12 => prop::collection::vec((step, prop::bool::weighted(0.9)), 1..3).prop_map(Op::Update),
        1 => Just(Op::Spoil),
        2 => any::<bool>().prop_map(Op::Delete),
        3 => (1i64..4).prop_map(Op::Insert),
        1 => Just(Op::Other),
        1 => Just(Op::Whole),
        12 => (1u8..4).prop_map(Op::Deliver),
        6 => (1u64..80).prop_map(Op::Pass),
        2 => Just(Op::Sweep),
        1 => Just(Op::Resend),
        20 => (0u8..8, vouches).prop_map(|(back, vouches)| Op::Fill(back, vouches)),
    ]
}

/// What a commit tells the feed.
#[derive(Clone, Debug)]
enum Told {
    /// And whether every version that it replaced is among it.
    Row(RowChanges, bool),
    Other,
    Whole,
}

struct Model {
    table: Table,
    states: Vec<State>,
    told: Vec<Told>,
    /// So many of the states the feed has brought: the first was there before it began.
    fed: usize,
    /// So many, but for those that it brings again.
    at: usize,
    counts: [usize; 4],
}

impl Model {
    fn new() -> Self {
        let table = Table::new(Limits { history: 100, lease_ttl: 10, ..limits() });
        let first = State { lsn: 100, version: Some(10) };
        Self { table, states: vec![first], told: vec![Told::Other], fed: 1, at: 1, counts: [0; 4] }
    }

    fn now(&self) -> Option<i64> {
        self.states.last().and_then(|state| state.version)
    }

    fn commit(&mut self, version: Option<i64>, told: Told) {
        let lsn = 100 + 10 * self.states.len() as u64;
        self.states.push(State { lsn, version });
        self.told.push(told);
    }

    fn row(&mut self, changes: &[RowChange], version: Option<i64>) {
        let (first, rest) = changes.split_first().expect("a change");
        let mut all = RowChanges::new(GUARD, *first);
        rest.iter().for_each(|change| all.add(*change));
        let tells = |change: &RowChange| !matches!(change, RowChange::Updated { old: None, .. });
        let grows = changes.iter().all(|change| match change {
            RowChange::Updated { old, new } => new > old,
            _ => false,
        });
        self.commit(version, Told::Row(all, grows && changes.iter().all(tells)));
    }

    fn run(&mut self, op: &Op) {
        match op {
            Op::Update(steps) => {
                let Some(mut version) = self.now() else { return };
                let change = |(step, tells): &(i64, bool)| {
                    let old = tells.then_some(version);
                    version += step;
                    updated(old, version)
                };
                let changes: Vec<RowChange> = steps.iter().map(change).collect();
                self.row(&changes, Some(version));
            }
            Op::Spoil => self.row(&[updated(self.now(), None)], None),
            Op::Delete(tells) => {
                let old = self.now().filter(|_| *tells).map(Version);
                self.row(&[RowChange::Deleted(old)], None);
            }
            Op::Insert(version) if self.now().is_none() => {
                self.row(&[RowChange::Inserted(v(*version))], Some(*version));
            }
            Op::Insert(_) => {}
            Op::Other => self.commit(self.now(), Told::Other),
            Op::Whole => self.commit(None, Told::Whole),
            Op::Deliver(commits) => (0..*commits).for_each(|_| self.deliver()),
            Op::Pass(time) => {
                let lsn = self.states[self.fed - 1].lsn;
                self.table.settle(lsn, &format!("{lsn}:{lsn}:"));
                self.table.now += time;
                self.table.settle(lsn, &format!("{lsn}:{lsn}:"));
            }
            Op::Sweep => self.table.fence.sweep(self.table.now),
            Op::Resend => self.at = self.fed.saturating_sub(3).max(1),
            Op::Fill(back, vouches) => self.fill(usize::from(*back), *vouches),
        }
    }

    fn deliver(&mut self) {
        let Some(state) = self.states.get(self.at) else { return };
        let write = Write { xid: Xid(state.lsn), lsn: Lsn(state.lsn) };
        let fence = &self.table.fence;
        match &self.told[self.at] {
            Told::Row(changes, _) => fence.write_row(ALICE, write, changes, &mut Vec::new()),
            Told::Other => fence.write(ALICE, write, &mut Vec::new()),
            Told::Whole => fence.write_guards(&[GUARD], write, &mut Vec::new()),
        }
        self.at += 1;
        self.fed = self.fed.max(self.at);
    }

    fn fill(&mut self, back: usize, vouches: Vouches) {
        let place = self.states.len().saturating_sub(1 + back);
        let Some(version) = self.states[place].version else { return };
        let verdict = self.table.judge_claim(VersionClaim { vouches, ..claim(version) });
        let floor = self.table.fence.floor().0;
        let fed = &self.states[..self.fed];
        let lacking = fed.iter().skip(place + 1);
        match verdict {
            // It contains every write that the feed has brought, but for those that the floor has passed.
            Verdict::Fresh => {
                let lacks: Vec<&State> = lacking.clone().filter(|state| state.lsn > floor).collect();
                let excused = lacking.clone().any(|state| state.lsn <= floor);
                assert!(lacks.is_empty() || excused, "{version} lacks {lacks:?} of {:?}", self.states);
                assert!(vouches != Vouches::Nothing);
                self.counts[usize::from(place >= self.fed)] += 1;
            }
            // The row has, as far as the feed knows, another state, with a larger version.
            Verdict::Stale(Stale::Superseded(lsn)) => {
                let last = fed.iter().rfind(|state| state.lsn == lsn.0).expect("a state");
                assert!(last.version.is_some_and(|last| last > version), "{version}: {last:?}");
                self.counts[2] += 1;
            }
            _ => {
                let ought_to = vouches != Vouches::Nothing && self.is_plain(place, floor);
                assert!(!ought_to, "{version} at {place} of {:?}: {verdict:?}", self.states);
                self.counts[3] += 1;
            }
        }
    }

    /// Whether a fill of the last state ought to be fresh: all that is remembered was told, and has grown.
    fn is_plain(&self, place: usize, floor: u64) -> bool {
        let remembered: Vec<usize> = (1..self.fed).filter(|n| self.states[*n].lsn > floor).collect();
        let grows = |n: &usize| match (&self.told[*n], self.states[*n - 1].version) {
            (Told::Row(_, plain), Some(before)) => {
                *plain && self.states[*n].version.is_some_and(|version| version > before)
            }
            _ => false,
        };
        !remembered.is_empty() && remembered.iter().all(grows) && place + 1 == self.fed
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn no_fill_passes_by_its_version_that_lacks_a_write(ops in prop::collection::vec(op(), 20..120)) {
        let mut model = Model::new();
        ops.iter().for_each(|op| model.run(op));
    }
}

/// That all of it happens at all.
#[test]
fn every_verdict_comes_up() {
    let mut model = Model::new();
    let fill = |back| Op::Fill(back, Vouches::LastWriteAndNewer);
    let grow = || Op::Update(vec![(1, true)]);
    let ops = [
        grow(),
        Op::Deliver(1),
        fill(0),
        fill(1),
        grow(),
        fill(0),
        Op::Delete(false),
        Op::Deliver(2),
        Op::Insert(1),
        Op::Deliver(1),
        fill(0),
    ];
    ops.iter().for_each(|op| model.run(op));
    assert_eq!(model.counts, [1, 1, 1, 1]);
}
