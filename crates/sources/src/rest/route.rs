//! Which paths are ours.

/// A path of this room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    /// `/events`.
    Event,
    /// `/events/batch` and `/batch`.
    EventBatch,
    /// `/api/ingest/event`.
    Document,
    /// `/api/ingest/streams/{stream}`.
    Stream(String),
}

impl Route {
    /// What the path leads to, if it is ours.
    #[must_use]
    pub fn of(path: &str) -> Option<Self> {
        match path {
            "/events" => Some(Self::Event),
            "/events/batch" | "/batch" => Some(Self::EventBatch),
            "/api/ingest/event" => Some(Self::Document),
            _ => {
                let name = path.strip_prefix("/api/ingest/streams/")?;
                (!name.is_empty() && !name.contains('/')).then(|| Self::Stream(name.to_owned()))
            }
        }
    }

    /// The path as figures and documents write it.
    #[must_use]
    pub fn pattern(&self) -> &'static str {
        match self {
            Self::Event => "/events",
            Self::EventBatch => "/events/batch",
            Self::Document => "/api/ingest/event",
            Self::Stream(_) => "/api/ingest/streams/{stream}",
        }
    }
}
