//! The sources that the settings name.

use std::sync::Arc;

use crate::config::Config;
use crate::feed::{Source, SourceState};
use crate::fence::SourceKind;
use crate::pg::error::PgError;
use crate::pg::target::Target;

/// The configured sources, and the primary in any case: its snapshots are needed even if nobody reads there. One that was
/// `known` before goes on as it was seen last.
///
/// # Errors
/// When a URL cannot be read. In settings that were checked it can.
pub fn sources(config: &Config, primary: &Target, known: &[Source]) -> Result<Vec<Source>, PgError> {
    let source = |index, name: &str, replica: Option<Target>| {
        let kind = if replica.is_some() { SourceKind::Replica } else { SourceKind::Primary };
        let target = replica.unwrap_or_else(|| primary.clone());
        if kind == SourceKind::Replica && target.host_count() > 1 {
            tracing::warn!(
                source = name,
                "a source has several hosts: only the one that it is connected to is asked what it shows. If applications \
                 may read another one meanwhile, make each a source of its own"
            );
        }
        let same = |known: &&Source| known.state.name == name && known.state.kind == kind;
        let state = known.iter().find(same).map(|known| known.state.clone());
        Source { index, target, state: state.unwrap_or_else(|| Arc::new(SourceState::new(name, kind))) }
    };
    let mut sources = Vec::new();
    for (index, configured) in config.sources.iter().enumerate() {
        sources.push(source(Some(index), &configured.name, configured.target()?));
    }
    if !sources.iter().any(|source| source.state.kind == SourceKind::Primary) {
        let listed = if sources.is_empty() { Some(0) } else { None };
        sources.push(source(listed, "primary", None));
    }
    Ok(sources)
}
