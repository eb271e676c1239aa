//! Zip and tar: each member is read as a file of its own.
//!
//! Members come one after another, none is written anywhere: a member's name is a label. Folders, links and devices are
//! passed over, archives within archives refused, members counted against a limit.

pub(crate) mod tar;
pub(crate) mod zip;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use self::tar::Tar;
use self::zip::ZipMember;
use crate::feed::Stream;
use crate::open::{Begin, begin};
use crate::{Input, Mark, Piece, Pieces, ReadError, ReadOptions};

enum Members {
    Zip { input: Arc<dyn Input>, members: Vec<ZipMember> },
    Tar(Tar),
}

/// Reads an archive's members in order.
pub(crate) struct Archive {
    name: String,
    members: Members,
    options: ReadOptions,
    member: u32,
    /// Where the first member is to go on.
    resume: Option<Mark>,
    current: Option<(String, Box<dyn Pieces>)>,
    read: Arc<AtomicU64>,
    total: Option<u64>,
    passed: Vec<(String, u64)>,
}

impl Archive {
    pub(crate) fn zip(
        input: Arc<dyn Input>,
        members: Vec<ZipMember>,
        options: &ReadOptions,
        resume: Option<Mark>,
        read: Arc<AtomicU64>,
    ) -> Self {
        let (name, total) = (input.name().to_owned(), input.len());
        Self::new(name, Members::Zip { input, members }, options, resume, read, total)
    }

    pub(crate) fn tar(
        stream: Stream,
        name: String,
        options: &ReadOptions,
        resume: Option<Mark>,
        (read, total): (Arc<AtomicU64>, Option<u64>),
    ) -> Self {
        Self::new(name, Members::Tar(Tar::new(stream)), options, resume, read, total)
    }

    fn new(
        name: String,
        members: Members,
        options: &ReadOptions,
        resume: Option<Mark>,
        read: Arc<AtomicU64>,
        total: Option<u64>,
    ) -> Self {
        let options = options.clone();
        Self { name, members, options, member: 0, resume, current: None, read, total, passed: Vec::new() }
    }

    /// The next member's label and bytes. None: there are no more.
    fn open_member(&mut self) -> Result<Option<(String, Option<Stream>)>, ReadError> {
        match &mut self.members {
            Members::Zip { input, members } => match members.get(self.member as usize) {
                None => Ok(None),
                Some(member) => {
                    let wanted = self.resume.is_none_or(|m| m.member <= self.member);
                    let stream = if wanted { member.open(input, &self.options.limits, &self.read)? } else { None };
                    Ok(Some((member.name.clone(), stream)))
                }
            },
            Members::Tar(tar) => tar
                .next_member()
                .map_err(|e| crate::open::read_error(&self.name, &format!("member {}", self.member), e)),
        }
    }
}

impl Pieces for Archive {
    fn next(&mut self) -> Result<Option<Piece>, ReadError> {
        loop {
            if let Some((label, pieces)) = &mut self.current {
                if let Some(mut piece) = pieces.next()? {
                    piece.member = Some(label.clone());
                    piece.next.member = self.member;
                    return Ok(Some(piece));
                }
                self.passed.extend(pieces.passed_over());
                self.current = None;
                self.member += 1;
            }
            if u64::from(self.member) >= self.options.limits.members {
                let reason = format!("more than {} members (limit members)", self.options.limits.members);
                return Err(ReadError::Limit {
                    name: self.name.clone(),
                    place: format!("member {}", self.member),
                    reason,
                });
            }
            let Some((label, stream)) = self.open_member()? else { return Ok(None) };
            let resume = self.resume.filter(|m| m.member == self.member).map(|m| Mark { member: 0, ..m });
            let skipped = self.resume.is_some_and(|m| m.member > self.member);
            let Some(stream) = stream.filter(|_| !skipped) else {
                if !skipped {
                    self.passed.push(("folder, link or other member without rows".to_owned(), 1));
                }
                self.member += 1;
                continue;
            };
            let name = format!("{}:{label}", self.name);
            let from = Begin { name, stream, seekable: None, read: self.read.clone(), total: self.total, nested: true };
            self.current = Some((label, begin(from, &self.options, resume)?));
        }
    }

    fn progress(&self) -> (u64, Option<u64>) {
        (self.read.load(Ordering::Relaxed), self.total)
    }

    fn passed_over(&self) -> Vec<(String, u64)> {
        let mut sums: Vec<(String, u64)> = Vec::new();
        for (kind, count) in &self.passed {
            match sums.iter_mut().find(|(k, _)| k == kind) {
                Some((_, sum)) => *sum += count,
                None => sums.push((kind.clone(), *count)),
            }
        }
        sums
    }
}
