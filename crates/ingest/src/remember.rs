//! What tells duplicates, kept over trimming and restarts: event keys and the answers of requests with an id.
//!
//! Frames hold both; before frames are trimmed, both go into files ([`crate::keys`]); at the start both come back from the
//! files and from what the log still has. Files are bounded as memory is: what memory has forgotten goes from them too.

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use lakegate_env::Disk;

use crate::duplicates::{SharedSettings, Windows, stream_hash};
use crate::frame::FrameHeader;
use crate::gate::{GateSettings, Inner, Trimmed};
use crate::keys::{ANSWERS, BlockFiles, KEYS, KeyEntry};
use crate::requests::{Answered, Kept, Requests};

/// The hash that stands for requests' own ids in files of earlier versions.
const REQUESTS_HASH: u64 = 0;
/// Files with keys may have so many bytes for each key that is remembered at most: twice what an entry takes.
const FILE_BYTES_A_KEY: u64 = 64;

/// What is remembered to tell duplicates.
#[derive(Debug, Clone)]
pub struct DuplicateSettings {
    /// The most event keys, of all streams and tenants together; a key takes up to 48 bytes.
    pub keys_max: u64,
    /// How long the answer of a request with an id is kept, in microseconds.
    pub requests_window_us: i64,
    /// The most bytes of such answers.
    pub requests_bytes: usize,
    /// The window that this instance shares with others, if any.
    pub shared: Option<SharedSettings>,
}

impl Default for DuplicateSettings {
    /// Ten million keys; answers for a day, in at most 64 MiB.
    fn default() -> Self {
        Self { keys_max: 10_000_000, requests_window_us: 86_400_000_000, requests_bytes: 64 << 20, shared: None }
    }
}

/// Opens the files with keys and puts them into their windows.
pub(crate) fn open_keys(
    disk: &Arc<dyn Disk>,
    settings: &GateSettings,
    windows: &Windows,
    requests: &Requests,
) -> io::Result<BlockFiles> {
    let each = |body: &[u8], suffix: &str| {
        let mut newest_us = i64::MIN;
        for entry in KeyEntry::all(body, suffix) {
            newest_us = newest_us.max(entry.received_us);
            if entry.stream == REQUESTS_HASH {
                let (answered, received_us) = (Answered::unknown(), entry.received_us);
                requests.note(entry.key, Kept { answered, position: 0, received_us });
            } else {
                windows.remember(entry.stream, entry.key, entry.received_us);
                windows.keep_within_bound();
            }
        }
        newest_us
    };
    BlockFiles::open(disk.clone(), settings.data_dir.join("keys"), KEYS, each)
}

/// Opens the files with answers and notes them.
pub(crate) fn open_answers(
    disk: &Arc<dyn Disk>,
    settings: &GateSettings,
    requests: &Requests,
) -> io::Result<BlockFiles> {
    let each = |body: &[u8], _: &str| {
        let mut newest_us = i64::MIN;
        for (key, kept) in Kept::all(body) {
            newest_us = newest_us.max(kept.received_us);
            requests.note(key, kept);
        }
        newest_us
    };
    BlockFiles::open(disk.clone(), settings.data_dir.join("requests"), ANSWERS, each)
}

/// What the frames that are about to go said.
#[derive(Default)]
struct Collected {
    keys: Vec<u8>,
    keys_count: usize,
    answers: Vec<u8>,
    answers_count: usize,
    newest_us: i64,
}

impl Collected {
    fn take(&mut self, header: &FrameHeader, next_offset: u64) {
        let received_us = header.received_us;
        self.newest_us = self.newest_us.max(received_us);
        if let Some((key, kept)) = kept_of(header, next_offset) {
            kept.put(key, &mut self.answers);
            self.answers_count += 1;
        }
        for stream in header.streams.iter().filter(|stream| !stream.keys.is_empty()) {
            let hash = stream_hash(&stream.key);
            stream.keys.iter().for_each(|key| {
                KeyEntry { stream: hash, key: *key, received_us }.put(&mut self.keys);
            });
            self.keys_count += stream.keys.len();
        }
    }
}

fn kept_of(header: &FrameHeader, next_offset: u64) -> Option<(u128, Kept)> {
    let position = next_offset.saturating_sub(1);
    let kept = || Kept { answered: header.answered.clone(), position, received_us: header.received_us };
    (header.batch_key != 0).then(|| (header.batch_key, kept()))
}

impl Inner {
    /// Remembers what a frame of the log says. Where others share the window, they are told again: a crash may have come
    /// between append and confirmation.
    pub(crate) fn remember(&self, header: &FrameHeader, first_offset: u64, next_offset: u64) {
        if let Some(shared) = &self.shared {
            let window_ms = u64::try_from(self.settings.longest_window_us / 1000).unwrap_or(u64::MAX);
            let keys = header.streams.iter().flat_map(|stream| {
                let hash = stream_hash(&stream.key);
                stream.keys.iter().map(move |key| shared.event_key(hash, *key, window_ms))
            });
            let own = kept_of(header, next_offset);
            let own = own.map(|(key, kept)| shared.request_key(key, &kept, self.requests.window_us()));
            let keys: Vec<_> = keys.chain(own).collect();
            let doubt = (!keys.is_empty()).then(|| shared.doubt(first_offset));
            shared.put_off(keys, doubt);
        }
        if let Some((key, kept)) = kept_of(header, next_offset) {
            self.requests.note(key, kept);
            self.has_keys.store(true, Ordering::Relaxed);
        }
        for stream in header.streams.iter().filter(|stream| !stream.keys.is_empty()) {
            let hash = stream_hash(&stream.key);
            for key in &stream.keys {
                self.streams.windows.remember(hash, *key, header.received_us);
            }
            self.streams.windows.keep_within_bound();
            self.has_keys.store(true, Ordering::Relaxed);
        }
    }

    /// Lets go of keys and answers whose window is over.
    pub(crate) fn forget_old(&self) {
        let now_us = self.clock.wall_us();
        self.streams.windows.sweep(now_us);
        #[allow(clippy::cast_precision_loss, reason = "a gauge")]
        metrics::gauge!("lakegate_duplicate_keys").set(self.streams.windows.keys() as f64);
        self.requests.sweep(now_us);
    }

    /// Keeps what the frames below `offset` say, which are about to go.
    pub(crate) fn keep_keys(&self, trimmed: &mut Trimmed, offset: u64) -> Result<(), String> {
        let now_us = self.clock.wall_us();
        if self.has_keys.load(Ordering::Relaxed) {
            let from = trimmed.keys_upto.max(self.log.first_offset());
            let mut collected = Collected { newest_us: i64::MIN, ..Collected::default() };
            for frame in self.log.read(from).map_err(|error| error.to_string())? {
                let frame = frame.map_err(|error| error.to_string())?;
                if frame.first_offset >= offset {
                    break;
                }
                let (header, _) = FrameHeader::decode(&frame.payload).map_err(|error| error.to_string())?;
                collected.take(&header, frame.next_offset());
            }
            let Collected { keys, keys_count, answers, answers_count, newest_us } = collected;
            let kept = self.keys.keep(keys_count, &keys, newest_us);
            kept.and_then(|()| self.answers.keep(answers_count, &answers, newest_us)).map_err(|e| e.to_string())?;
            trimmed.keys_upto = offset;
        }
        let shrunk = self.shrink_files(now_us);
        shrunk.map_err(|error| error.to_string())
    }

    fn shrink_files(&self, now_us: i64) -> io::Result<()> {
        let windows = &self.streams.windows;
        self.keys.forget(now_us.saturating_sub(self.settings.longest_window_us))?;
        self.answers.forget(now_us.saturating_sub(self.requests.window_us()))?;
        self.keys.shrink(windows.keys_max().saturating_mul(FILE_BYTES_A_KEY), |body, suffix| {
            let mut kept = (0, Vec::new());
            for entry in KeyEntry::all(body, suffix).filter(|entry| windows.knows(entry.stream, entry.key)) {
                entry.put(&mut kept.1);
                kept.0 += 1;
            }
            kept
        })?;
        let answers_max = u64::try_from(self.settings.duplicates.requests_bytes).unwrap_or(u64::MAX);
        self.answers.shrink(answers_max.saturating_mul(2), |body, _| {
            let mut kept = (0, Vec::new());
            for (key, entry) in Kept::all(body).filter(|(key, entry)| {
                self.requests.find(*key, now_us).is_some_and(|known| known.position == entry.position)
            }) {
                entry.put(key, &mut kept.1);
                kept.0 += 1;
            }
            kept
        })
    }
}
