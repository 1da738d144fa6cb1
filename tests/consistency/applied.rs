//! How far behind the database the proxy is, measured from outside.
//!
//! A *mark* says: what was acknowledged before `asked` had been applied by `known`. Both are read on the clock of the
//! run, `asked` before the measurement begins and `known` after it has ended. So a mark is late by up to the time of a
//! measurement, and never early: a read that started after it and is older is a defect, whatever the machine did.

use crate::history::Micros;

#[derive(Clone, Copy, Debug)]
pub struct Mark {
    pub asked: Micros,
    pub known: Micros,
}

/// The marks of a run.
#[derive(Clone, Debug, Default)]
pub struct Applied(Vec<Mark>);

impl Applied {
    pub fn new(mut marks: Vec<Mark>) -> Self {
        marks.sort_unstable_by_key(|mark| mark.asked);
        // A later question that was answered sooner speaks for the earlier ones too.
        for n in (1..marks.len()).rev() {
            marks[n - 1].known = marks[n - 1].known.min(marks[n].known);
        }
        Self(marks)
    }

    /// When it was known that all that had been acknowledged by then was applied.
    pub fn by(&self, acknowledged: Micros) -> Option<Micros> {
        // Clock readings are rounded down, so only a greater one is later.
        let next = self.0.partition_point(|mark| mark.asked <= acknowledged);
        self.0.get(next).map(|mark| mark.known)
    }
}

#[test]
fn a_mark_speaks_for_what_was_acknowledged_before_it() {
    let mark = |asked, known| Mark { asked, known };
    let applied = Applied::new(vec![mark(30, 40), mark(10, 60), mark(50, 90)]);
    assert_eq!(applied.by(5), Some(40));
    assert_eq!(applied.by(10), Some(40));
    assert_eq!(applied.by(30), Some(90), "asked at the same time is not before");
    assert_eq!(applied.by(50), None);
}
