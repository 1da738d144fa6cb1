//! From a key to its guards: a trie over the templates' literal prefixes.

use smallvec::SmallVec;

use super::{GuardId, Template};

/// The guards of one key. Four cover all but odd configurations without an allocation.
pub type GuardList = SmallVec<[GuardId; 4]>;

/// Finds a key's guards. Most keys have none, and leave at the first byte that no template continues with.
#[derive(Debug, Clone)]
pub struct Matcher {
    /// The root is the first; empty only before the first template.
    nodes: Vec<Node>,
}

/// A stretch of text that all templates below it share.
#[derive(Debug, Clone)]
struct Node {
    text: Box<[u8]>,
    /// Templates whose prefix ends with `text`.
    ending: Box<[(GuardId, Template)]>,
    /// By the next byte, ascending.
    next: Box<[(u8, usize)]>,
}

impl Matcher {
    /// A matcher for these templates.
    pub fn new<'a>(templates: impl IntoIterator<Item = (GuardId, &'a Template)>) -> Self {
        let mut templates: Vec<_> = templates.into_iter().collect();
        // By prefix first: what shares a stretch of text stands together.
        templates.sort_by_key(|(guard, template)| (template.prefix(), *guard));
        let mut nodes = Vec::new();
        if !templates.is_empty() {
            add(&mut nodes, &templates, 0);
        }
        Self { nodes }
    }

    /// Appends the guards of `key` to `out`, each once.
    pub fn guards(&self, key: &[u8], out: &mut GuardList) {
        self.each(key, |guard, template| {
            if !out.contains(&guard) && template.matches_after_prefix(key) {
                out.push(guard);
            }
        });
    }

    /// Whether one row feeds `key`, and nothing else does: one template matches, whose keys are of one row each.
    pub fn is_one_row(&self, key: &[u8]) -> bool {
        let (mut matching, mut all_of_one_row) = (0, true);
        self.each(key, |_, template| {
            if template.matches_after_prefix(key) {
                (matching, all_of_one_row) = (matching + 1, all_of_one_row && template.is_one_row());
            }
        });
        matching == 1 && all_of_one_row
    }

    /// The template that `key` is of, if it is of one only.
    pub fn only(&self, key: &[u8]) -> Option<(GuardId, &Template)> {
        let (mut found, mut several) = (None, false);
        self.each(key, |guard, template| {
            if template.matches_after_prefix(key) {
                several |= found.replace((guard, template)).is_some();
            }
        });
        found.filter(|_| !several)
    }

    /// The templates whose prefix `key` begins with.
    #[inline]
    fn each<'a>(&'a self, key: &[u8], mut see: impl FnMut(GuardId, &'a Template)) {
        let mut at = 0;
        let mut node = self.nodes.first();
        while let Some(Node { text, ending, next }) = node {
            if !key[at..].starts_with(text) {
                return;
            }
            at += text.len();
            for (guard, template) in ending {
                see(*guard, template);
            }
            node = key.get(at).and_then(|byte| {
                let (_, child) = next.get(next.binary_search_by_key(byte, |(b, _)| *b).ok()?)?;
                self.nodes.get(*child)
            });
        }
    }
}

/// Adds the node of `templates` (sorted, not empty), which agree up to `depth`, and those below it.
fn add(nodes: &mut Vec<Node>, templates: &[(GuardId, &Template)], depth: usize) -> usize {
    // Sorted: what the first and the last share, all share.
    let (first, last) = (templates[0].1.prefix(), templates[templates.len() - 1].1.prefix());
    let shared = first[depth..].iter().zip(&last[depth..]).take_while(|(a, b)| a == b).count();
    let end = depth + shared;
    let (ending, longer) = templates.split_at(templates.partition_point(|(_, t)| t.prefix().len() == end));
    let index = nodes.len();
    nodes.push(Node {
        text: first[depth..end].into(),
        ending: ending.iter().map(|(guard, template)| (*guard, (*template).clone())).collect(),
        next: Box::default(),
    });
    nodes[index].next = longer
        .chunk_by(|(_, a), (_, b)| a.prefix()[end] == b.prefix()[end])
        .map(|group| (group[0].1.prefix()[end], add(nodes, group, end)))
        .collect();
    index
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn guards(templates: &[&str], key: &str) -> Vec<u16> {
        let templates: Vec<_> = templates.iter().map(|t| Template::parse(t).expect("a template")).collect();
        let matcher = Matcher::new(templates.iter().enumerate().map(|(n, t)| (GuardId(n as u16), t)));
        let mut out = GuardList::new();
        matcher.guards(key.as_bytes(), &mut out);
        out.iter().map(|g| g.0).collect()
    }

    #[test]
    fn a_key_finds_its_guards() {
        let all = ["user:<id>", "user:<id>:profile", "users:all", "u<x>"];
        assert_eq!(guards(&all, "user:7"), [3, 0]);
        assert_eq!(guards(&all, "user:7:profile"), [3, 0, 1]);
        assert_eq!(guards(&all, "users:all"), [3, 2]);
        assert_eq!(guards(&all, "users:all:"), [3]);
        assert_eq!(guards(&all, "order:1"), [0u16; 0]);
        assert_eq!(guards(&all, ""), [0u16; 0]);
        assert_eq!(guards(&[], "user:7"), [0u16; 0]);
    }

    #[test]
    fn a_key_of_one_row_is_of_one_template() {
        let template = |text, is_one_row| {
            let mut template = Template::parse(text).expect("a template");
            template.set_one_row(is_one_row);
            template
        };
        let all = [template("user:<id>", true), template("user:<x>:y", true), template("user:all", false)];
        let matcher = Matcher::new(all.iter().enumerate().map(|(n, t)| (GuardId(n as u16), t)));
        assert!(matcher.is_one_row(b"user:1"));
        assert!(!matcher.is_one_row(b"user:1:y"), "two templates");
        assert!(!matcher.is_one_row(b"user:all"));
        assert!(!matcher.is_one_row(b"user"));
    }

    #[test]
    fn a_guard_is_found_once() {
        let template = |text| Template::parse(text).expect("a template");
        let (a, b) = (template("user:<id>"), template("user:<name>:x"));
        let matcher = Matcher::new([(GuardId(3), &a), (GuardId(3), &b)]);
        let mut out = GuardList::new();
        matcher.guards(b"user:1:x", &mut out);
        assert_eq!(out.as_slice(), [GuardId(3)]);
    }

    proptest! {
        #[test]
        fn the_trie_agrees_with_asking_every_template(
            texts in prop::collection::vec("[ab]{1,3}(<x>[ab]{0,1}){0,2}", 0..8), key in "[ab]{0,6}",
        ) {
            let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
            let mut found = guards(&texts, &key);
            found.sort_unstable();
            let asked: Vec<u16> = (0..texts.len())
                .filter(|&n| Template::parse(texts[n]).expect("a template").matches(key.as_bytes()))
                .map(|n| n as u16)
                .collect();
            prop_assert_eq!(found, asked);
        }
    }
}
