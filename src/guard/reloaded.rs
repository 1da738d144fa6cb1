//! Guards that change while the proxy runs.
//!
//! A guard keeps its number for as long as its table and its keys stay what they are. One whose keys change is removed and
//! added: what is remembered under its old number says nothing of the new one. A number is never used again.

use super::{Guard, GuardError, GuardId, GuardProblem, Guards};
use crate::config;

/// Guards after a reload, and what is different.
#[derive(Debug)]
pub struct Reloaded {
    /// All of them.
    pub guards: Guards,
    /// Those that were not there before, or had other keys.
    pub added: Vec<GuardId>,
    /// The labels of those that are no more, or have other keys.
    pub removed: Vec<String>,
    /// Those with another policy.
    pub changed: Vec<GuardId>,
}

/// Guards that can be added while the process runs.
const ADDED: usize = 1024;

impl Guards {
    /// How many numbers there will ever be, when these are the guards of the start.
    pub fn numbers(&self) -> usize {
        (self.guards.len() + ADDED).min(usize::from(u16::MAX))
    }

    /// What becomes of these guards by other settings. New ones are numbered from `next` on, below `end`.
    ///
    /// # Errors
    /// When the settings cannot be used, or no numbers are left.
    pub fn reloaded(&self, settings: &[config::Guard], next: u16, end: u16) -> Result<Reloaded, GuardError> {
        let wanted = Self::new(settings, self.home)?;
        let (mut added, mut changed) = (Vec::new(), Vec::new());
        let mut guards = Vec::with_capacity(settings.len());
        for guard in wanted.guards {
            match self.by_label(&guard.label).filter(|known| known.guards_the_same(&guard)) {
                Some(known) => {
                    if known.policy != guard.policy {
                        changed.push(known.id);
                    }
                    guards.push(Guard { policy: guard.policy, ..known.clone() });
                }
                None => {
                    let number = usize::from(next) + added.len();
                    let id = u16::try_from(number).ok().filter(|id| *id < end).map(GuardId);
                    let id = id.ok_or_else(|| super::error("guard".into(), GuardProblem::NoNumbers))?;
                    added.push(id);
                    guards.push(Guard { id, ..guard });
                }
            }
        }
        guards.sort_by_key(|guard| guard.id);
        let gone = |guard: &&Guard| guards.binary_search_by_key(&guard.id, |kept| kept.id).is_err();
        let removed = self.guards.iter().filter(gone).map(|guard| guard.label.clone()).collect();
        Ok(Reloaded { guards: Self::of(guards, self.home), added, removed, changed })
    }

    /// A copy with the policies that the same guards have among others.
    pub fn with_policies(&self, others: &Self) -> Self {
        let mut guards = self.guards.clone();
        for guard in &mut guards {
            if let Some(other) = others.get(guard.id) {
                guard.policy = other.policy.clone();
            }
        }
        Self { guards, ..self.clone() }
    }

    /// Those that others lack.
    pub fn beyond(&self, others: &Self) -> Vec<GuardId> {
        self.iter().map(|guard| guard.id).filter(|id| others.get(*id).is_none()).collect()
    }

    /// The youngest guard. A key that had no guard when this one was there already can have got one only if there is a younger
    /// one now.
    pub fn youngest(&self) -> Option<GuardId> {
        self.guards.last().map(|guard| guard.id)
    }
}

impl Guard {
    /// Whether another one's rows feed the same keys, and tell as much of them.
    fn guards_the_same(&self, other: &Self) -> bool {
        let keys = |guard: &Self| {
            let mut keys: Vec<String> = guard.templates.iter().map(|key| key.text().to_owned()).collect();
            keys.sort_unstable();
            keys
        };
        self.label == other.label
            && self.db == other.db
            && self.policy.version == other.policy.version
            && keys(self) == keys(other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(table: &str, keys: &[&str], more: &str) -> config::Guard {
        toml::from_str(&format!("table = {table:?}\nkeys = {keys:?}\n{more}")).expect("settings")
    }

    #[test]
    fn a_guard_keeps_its_number_while_its_keys_stay() {
        let (users, orders) =
            (settings("users", &["u:<id>", "v:<id>"], ""), settings("orders", &["o:<id>"], ""));
        let guards = Guards::new(&[users.clone(), orders.clone()], 0).expect("guards");
        let ids = |guards: &Guards| {
            guards.iter().map(|guard| (guard.id.0, guard.label.clone())).collect::<Vec<_>>()
        };

        let turned = settings("public.users", &["v:<id>", "u:<id>"], "");
        let same = guards.reloaded(&[orders.clone(), turned], 2, 9).expect("guards");
        assert_eq!(ids(&same.guards), ids(&guards), "order and spelling are no matter");
        assert!(same.added.is_empty() && same.removed.is_empty());

        let items = settings("items", &["i:<id>"], "");
        let strict = settings("users", &["u:<id>", "v:<id>"], "unproven = \"refuse\"");
        let next = guards.reloaded(&[items.clone(), strict], 2, 9).expect("guards");
        assert_eq!((&next.added, &next.changed), (&vec![GuardId(2)], &vec![GuardId(0)]));
        assert_eq!(next.removed, ["public.orders"]);
        assert_eq!(next.guards.matching(0, b"i:1").as_slice(), [GuardId(2)]);
        assert!(next.guards.matching(0, b"o:1").is_empty());
        assert!(next.guards.get(GuardId(1)).is_none() && next.guards.get(GuardId(2)).is_some());
        assert_eq!(next.guards.beyond(&guards), [GuardId(2)]);

        // The number of the one that went is not given to another.
        let back = next.guards.reloaded(&[items, orders], 3, 9).expect("guards");
        assert_eq!(back.added, [GuardId(3)]);
        assert_eq!(ids(&back.guards), [(2, "public.items".into()), (3, "public.orders".into())]);
    }

    #[test]
    fn other_keys_make_another_guard() {
        let guards = Guards::new(&[settings("users", &["u:<id>"], "")], 0).expect("guards");
        for other in [
            settings("users", &["u:<id>", "x:<id>"], ""),
            settings("users", &["u:<id>"], "db = 3"),
            settings("users", &["u:<id>"], "version = { column = \"v\", raw = true }"),
        ] {
            let next = guards.reloaded(std::slice::from_ref(&other), 1, 9).expect("guards");
            assert_eq!(
                (next.added.as_slice(), next.removed.as_slice()),
                (&[GuardId(1)][..], &["public.users".into()][..])
            );
            let none_left = guards.reloaded(&[other], 9, 9).expect_err("no number");
            assert!(none_left.to_string().contains("restart"), "{none_left}");
        }
    }

    #[test]
    fn policies_come_from_the_same_guards_only() {
        let users = |more| settings("users", &["u:<id>"], more);
        let guards = Guards::new(&[users("")], 0).expect("guards");
        let changed = guards.reloaded(&[users("unproven = \"allow\"")], 1, 9).expect("guards").guards;
        let policy = |guards: &Guards| guards.iter().map(|guard| guard.policy.unproven).collect::<Vec<_>>();
        assert_eq!(policy(&guards.with_policies(&changed)), [config::Unproven::Allow]);
        let other = guards
            .reloaded(&[settings("users", &["x:<id>"], "unproven = \"refuse\"")], 1, 9)
            .expect("guards");
        assert_eq!(policy(&guards.with_policies(&other.guards)), policy(&guards));
    }
}
