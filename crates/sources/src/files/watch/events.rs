//! What a folder tells of its changes.

use std::sync::Arc;

use lakegate_places::Places;
use notify::{Config, Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::Notify;

use crate::files::job::Job;

/// Tells that something changed, and nothing more: what changed is found by listing. So lost events (an overflow tells
/// of itself as a change) cost nothing.
pub(super) struct Events {
    /// Ends with this.
    _watcher: RecommendedWatcher,
}

impl Events {
    /// None: some of the places tell nothing, or the system has no more room for watches.
    pub(super) fn open(places: &Places, job: &Job, changed: &Arc<Notify>) -> Option<Self> {
        let changed = changed.clone();
        let tell = move |event: notify::Result<Event>| {
            // That someone reads is no change; errors may hide one.
            if !event.is_ok_and(|event| is_reading(&event)) {
                changed.notify_one();
            }
        };
        let mut watcher = RecommendedWatcher::new(tell, Config::default().with_follow_symlinks(false)).ok()?;
        for place in job.request.places() {
            let base = lakegate_places::Location::parse(place).ok()?;
            let base = base.split_glob().map_or(base, |(base, _)| base);
            let folder = places.folder(&base.uri(), Some(job.asker.tenant.as_str())).ok()??;
            let mode = RecursiveMode::Recursive;
            if let Err(error) = watcher.watch(&folder, mode) {
                tracing::warn!(watch = %job.id, %error, "the folder is looked at again and again: the system does not tell of its changes");
                return None;
            }
        }
        Some(Self { _watcher: watcher })
    }
}

fn is_reading(event: &Event) -> bool {
    use notify::event::{AccessKind, AccessMode};
    let closed = EventKind::Access(AccessKind::Close(AccessMode::Write));
    matches!(event.kind, EventKind::Access(_)) && event.kind != closed && !event.need_rescan()
}
