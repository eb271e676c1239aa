//! What this room needs of the gate. Tests of the protocols bring their own.

use std::time::Duration;

use lakegate_access::Principal;
use lakegate_ingest::{ComponentHealth, Gate, GateStatus, Sequence, Submission, SubmissionOutcome, SubmitError};
use lakegate_model::{StreamName, TenantId};

/// Where requests go.
pub trait Intake: Clone + Send + Sync + 'static {
    /// Takes one request; `Ok` once it is durable.
    fn submit(&self, submission: Submission) -> impl Future<Output = Result<SubmissionOutcome, SubmitError>> + Send;
    /// The same for a request of a connection that is to stay behind those before it, and not to overtake one that was
    /// refused for now.
    fn submit_in(
        &self,
        submission: Submission,
        _sequence: &Sequence,
    ) -> impl Future<Output = Result<SubmissionOutcome, SubmitError>> + Send {
        self.submit(submission)
    }
    /// Figures of the streams that are asked for.
    fn status(&self, tenant: Option<&TenantId>, stream: Option<&StreamName>) -> GateStatus;
    /// How each component is.
    fn health(&self) -> Vec<ComponentHealth>;
    /// Refuses a request of so many bytes before it is looked at, where its sender was told to come back later.
    fn check_early(&self, _principal: Option<&Principal>, _bytes: usize) -> Result<(), SubmitError> {
        Ok(())
    }
    /// Where a request of so many bytes is to be worked on, if not where it is.
    fn aside(&self, _bytes: usize) -> Option<&tokio::runtime::Handle> {
        None
    }
}

/// Who comes before the time that it was told is answered after so long at most: one who waits for answers floods no faster.
const LATE: Duration = Duration::from_millis(250);

/// Refuses a request of so many bytes where it comes before the time that its sender was told. The answer comes late;
/// what the request holds is let go before.
pub(crate) async fn refuse_early<I: Intake, H>(
    intake: &I,
    principal: Option<&Principal>,
    bytes: usize,
    held: H,
) -> Result<H, SubmitError> {
    let Err(error) = intake.check_early(principal, bytes) else { return Ok(held) };
    drop(held);
    if let SubmitError::OverQuota { retry_after_ms, .. } = &error {
        tokio::time::sleep(Duration::from_millis(*retry_after_ms).min(LATE)).await;
    }
    Err(error)
}

impl Intake for Gate {
    fn submit(&self, submission: Submission) -> impl Future<Output = Result<SubmissionOutcome, SubmitError>> + Send {
        self.submit(submission)
    }

    async fn submit_in(&self, submission: Submission, sequence: &Sequence) -> Result<SubmissionOutcome, SubmitError> {
        self.submit_in(submission, sequence).await
    }

    fn status(&self, tenant: Option<&TenantId>, stream: Option<&StreamName>) -> GateStatus {
        self.status(tenant, stream)
    }

    fn health(&self) -> Vec<ComponentHealth> {
        self.health()
    }

    fn check_early(&self, principal: Option<&Principal>, bytes: usize) -> Result<(), SubmitError> {
        self.check_early(principal, bytes)
    }

    fn aside(&self, bytes: usize) -> Option<&tokio::runtime::Handle> {
        self.aside(bytes)
    }
}
