//! A frame's records as rows: shaped anew under the contracts that this instance has, with the decisions that the gateway
//! answered with.
//!
//! Instances are started with the same streams, so that what a gateway accepted is accepted here. Where it is not, the
//! record is set aside: its sender was told that it is stored. A table grows here, where its rows are made.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use lakegate_model::{Refusal, StreamKey, Tally};

use crate::batch::{Route, Rules, Shaped, context, own_origin, shape_one};
use crate::columns::{Columns, ColumnsRefused, shape_columns};
use crate::frame::{ExceptionKind, FrameBody};
use crate::gate::Inner;
use crate::import::conform::Names;
use crate::replay::{Frame, decisions, rules_of};
use crate::shape::RecordContext;
use crate::streams::Stream;
use crate::upstream::UpstreamError;
use crate::wire::{BatchRequest, WireRecord};
use lakegate_memtable::Value;

/// What was decided about records when they came.
type Decided = HashMap<u32, (ExceptionKind, Refusal)>;

/// Shapes what a frame has for the streams that it names.
pub(super) async fn shape_frame<'f>(
    inner: &Inner,
    frame: &'f Frame,
    request: &BatchRequest<'f>,
) -> Result<Shaped<'f>, UpstreamError> {
    let rules = rules_of(inner, &frame.header);
    if matches!(frame.header.body, FrameBody::Arrow { .. }) {
        return shape_rows(frame, &rules).await;
    }
    let decided = decisions(&frame.header);
    let mine: HashSet<&StreamKey> = frame.header.streams.iter().map(|stream| &stream.key).collect();
    let mut shaped = shape_records(request, &rules, &mine, &decided, true);
    if shaped.groups.iter().all(|group| group.wishes.is_empty()) {
        return Ok(shaped);
    }
    for group in &mut shaped.groups {
        let wishes = std::mem::take(&mut group.wishes);
        if !wishes.is_empty()
            && let Err(error) = inner.streams.grow(&group.stream, wishes, &inner.lake).await
        {
            tracing::warn!(table = %group.stream.unit.table, %error, "the table cannot grow by what records bring");
        }
    }
    drop(shaped);
    Ok(shape_records(request, &rules, &mine, &decided, false))
}

/// Rows in columns: what the gateway gave back is given back by the same contract again, and was counted there.
async fn shape_rows(frame: &Frame, rules: &Rules<'_>) -> Result<Shaped<'static>, UpstreamError> {
    let FrameBody::Arrow { tenant, stream, by_name } = &frame.header.body else { return Ok(Shaped::default()) };
    let unfit = |why: String| {
        UpstreamError::Stream(format!(
            "columns for the stream {stream} were taken by a gateway and do not fit its contract here ({why}); give all instances the same streams"
        ))
    };
    // It was within its bounds when it came.
    let columns = Columns::read(&frame.body, usize::MAX).map_err(|error| unfit(error.to_string()))?;
    let request = BatchRequest::of_columns(&frame.body, tenant.as_ref(), stream);
    let names = if *by_name { Names::Own } else { Names::Payload };
    let shaped = shape_columns(&request, &columns, names, rules).await;
    let mut shaped = shaped.map_err(|refused| match refused {
        ColumnsRefused::Refusal(refusal) => unfit(refusal.message),
        ColumnsRefused::NotAllowed(_) => unfit("it names another tenant".to_owned()),
    })?;
    for group in &mut shaped.groups {
        group.tally.received -= group.tally.rejected;
        group.tally.rejected = 0;
    }
    Ok(shaped)
}

/// The stream of the record before, which most often is that of the next.
struct Last<'a> {
    route: Route<'a>,
    key: StreamKey,
    found: Result<Arc<Stream>, Refusal>,
}

fn shape_records<'a>(
    request: &BatchRequest<'a>,
    rules: &Rules<'_>,
    mine: &HashSet<&StreamKey>,
    decided: &Decided,
    may_grow: bool,
) -> Shaped<'a> {
    let mut shaped = Shaped { may_grow, ..Shaped::of(request) };
    let mut last: Option<Last<'a>> = None;
    for (index, bytes) in request.records.iter().copied().enumerate() {
        let decision = u32::try_from(index).ok().and_then(|index| decided.get(&index));
        if matches!(decision, Some((ExceptionKind::Duplicate | ExceptionKind::Rejected, _))) {
            continue;
        }
        let read = WireRecord::read(request.kind, bytes);
        let route = Route::of(request, read.as_ref().ok());
        if last.as_ref().is_none_or(|last| last.route != route) {
            let Some(key) = route.key(rules) else { continue };
            let found = match route.resolve(rules, index) {
                Ok(found) => found,
                Err(_) => continue,
            };
            last = Some(Last { route, key, found });
        }
        let Some(Last { key, found, .. }) = &last else { continue };
        if !mine.contains(key) {
            continue;
        }
        let whole = match found {
            Ok(stream) => crate::batch::part_of(rules, stream, read.as_ref().ok()),
            Err(refusal) => Err(refusal.clone()),
        };
        match whole {
            Ok(stream) => {
                let stream = shaped.pinned(stream);
                shaped.take_record((index, bytes), read, &stream, rules, decision.map(|(_, refusal)| refusal));
            }
            Err(refusal) => {
                let one = Tally { received: 1, dead_lettered: 1, ..Tally::default() };
                shaped.set_aside(index, bytes, key, rules, &refusal);
                shaped.unroutable.push((key.clone(), one));
            }
        }
    }
    shaped
}

impl<'a> Shaped<'a> {
    /// Shapes one record; what cannot be a row is set aside, whatever its contract says: its sender is gone.
    fn take_record(
        &mut self,
        (index, bytes): (usize, &'a [u8]),
        read: Result<WireRecord<'a>, Refusal>,
        stream: &Arc<Stream>,
        rules: &Rules<'_>,
        decided: Option<&Refusal>,
    ) {
        let group = self.group_of(stream);
        let name = |text: &str| Value::Owned(text.into());
        let (tenant, of) = (name(stream.key.tenant.as_str()), name(stream.key.stream.as_str()));
        let mut context: RecordContext<'a> = context(rules, tenant, of, own_origin(rules));
        context.may_grow = self.may_grow;
        let mut row = Vec::with_capacity(stream.shaper.contract.columns.len());
        let mut seen = shape_one(index, read, stream, rules, &mut context, &mut row);
        if let Some(refusal) = decided {
            seen.refusal.get_or_insert_with(|| refusal.clone());
        }
        self.note_marks(group, rules, &mut context);
        self.note_key(group, index, &row, &seen);
        let one = match &seen.refusal {
            None => {
                let bytes = seen.payload.len() as u64;
                self.keep_again(stream, row);
                Tally { received: 1, accepted: 1, bytes, ..Tally::default() }
            }
            Some(refusal) => {
                self.set_aside(index, bytes, &stream.key, rules, refusal);
                Tally { received: 1, dead_lettered: 1, ..Tally::default() }
            }
        };
        if let Some(group) = self.groups.get_mut(group) {
            group.tally.add(&one);
        }
    }
}
