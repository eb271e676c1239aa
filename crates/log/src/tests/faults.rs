use std::path::Path;
use std::sync::Arc;

use lakegate_env::{Disk, Fault, MemDisk, OpKind};

use super::{DIR, Model, faulty, open, options, try_open};
use crate::prepare::RESERVE_NAME;
use crate::{AppendError, LogError, LogHealth, Ticket};

/// Opens, appends, writes, turns and trims on a disk that fails once; returns the tickets that were given.
fn work(disk: Arc<dyn Disk>, model: &mut Model) -> Vec<(Ticket, bool)> {
    let Ok(log) = try_open(disk, options()) else { return Vec::new() };
    let mut tickets = Vec::new();
    for round in 0..30 {
        tickets.extend(model.append(&log, 1, vec![u8::try_from(round).unwrap() + 1; 1000]));
        let stepped = log.step();
        if round == 25 {
            let _ = log.trim(11);
        }
        if stepped.is_err() {
            let durable = log.durable_offset();
            assert!(matches!(log.append(1, &[]), Err(AppendError::Stopped(LogError::Poisoned { .. }))));
            assert!(log.step().is_err() && log.step().is_err());
            assert_eq!(log.durable_offset(), durable, "the durable offset never moves again");
            assert!(matches!(log.status().health, LogHealth::Poisoned { .. }));
        }
    }
    log.close();
    tickets.into_iter().map(|ticket| (ticket.clone(), ticket.wait_durable().is_ok())).collect()
}

#[test]
fn f14_any_failing_operation_loses_nothing_acknowledged_and_tells_all_who_wait() {
    for kind in OpKind::ALL {
        for fault in [Fault::Eio, Fault::Enospc, Fault::ShortWrite, Fault::EioAfter] {
            for from_then_on in [false, true] {
                for nth in 1.. {
                    let disk = MemDisk::new();
                    let broken = faulty(&disk);
                    if from_then_on {
                        broken.fail_from(kind, nth, fault);
                    } else {
                        broken.fail_once(kind, nth, fault);
                    }
                    let mut model = Model::default();
                    let tickets = work(Arc::new(broken.clone()), &mut model);
                    if broken.faults_acted() == 0 {
                        break;
                    }
                    let acked = tickets
                        .iter()
                        .filter(|(_, acked)| *acked)
                        .map(|(ticket, _)| ticket.next_offset())
                        .max()
                        .unwrap_or(0);
                    let mut again = model.clone();
                    let log = open(&disk.crash(nth));
                    model.check(&log, acked);
                    drop(log);
                    let log = open(&disk.kill());
                    again.check(&log, acked);
                    again.cut(&log);
                    again.append(&log, 1, vec![1; 10]).unwrap();
                    log.step().unwrap();
                    again.check(&log, acked + 1);
                }
            }
        }
    }
}

#[test]
fn f15_a_sync_that_fails_once_is_not_tried_again_and_nothing_is_acknowledged_after_it() {
    let disk = MemDisk::new();
    let broken = faulty(&disk);
    let log = try_open(Arc::new(broken.clone()), options()).unwrap();
    let mut model = Model::default();
    let good = model.append(&log, 1, vec![1; 100]).unwrap();
    log.step().unwrap();
    broken.fail_once(OpKind::SyncData, 1, Fault::Eio);
    let bad = model.append(&log, 1, vec![2; 100]).unwrap();
    let failed = log.step().unwrap_err();
    assert!(matches!(&failed, LogError::Poisoned { reason } if reason.contains("syncing frames")));
    let (syncs, writes) = (broken.count(OpKind::SyncData), broken.count(OpKind::Write));
    for _ in 0..10 {
        assert_eq!(log.append(1, &[]).unwrap_err(), AppendError::Stopped(failed.clone()));
        assert_eq!(log.step().unwrap_err(), failed);
    }
    assert_eq!((good.wait_durable(), bad.wait_durable()), (Ok(()), Err(failed)));
    assert!(log.trim(1).is_err());
    log.close();
    assert_eq!((broken.count(OpKind::SyncData), broken.count(OpKind::Write)), (syncs, writes));
    assert_eq!(log.durable_offset(), 1);
    model.check(&open(&disk.crash(3)), 1);
}

#[test]
fn f16_a_full_disk_refuses_and_goes_on_by_itself_when_there_is_room() {
    let disk = MemDisk::new();
    let log = open(&disk);
    disk.set_capacity(Some(disk.used_bytes() + 20_000));
    let mut model = Model::default();
    let mut waiting = Vec::new();
    let refused = loop {
        match log.append(1, &[vec![3; 1000].into()]) {
            Ok(ticket) => {
                model.0.push(crate::Frame {
                    first_offset: ticket.first_offset,
                    records: 1,
                    payload: vec![3; 1000].into(),
                });
                waiting.push(ticket);
            }
            Err(error) => break error,
        }
        log.step().unwrap();
    };
    assert!(matches!(refused, AppendError::OutOfRoom { .. }) && refused.is_retryable(), "{refused}");
    assert!(matches!(log.status().health, LogHealth::OutOfRoom { .. }));
    let durable = log.durable_offset();
    assert!(durable >= 22 && durable < model.next_offset(), "what fits is acknowledged, what does not waits");
    // Trimming still works, thanks to the reserve, and makes the room that is lacking.
    disk.set_capacity(Some(disk.used_bytes()));
    log.trim(durable).unwrap();
    assert!(!disk.exists(&Path::new(DIR).join(RESERVE_NAME)).unwrap());
    disk.set_capacity(None);
    while log.step().unwrap() {}
    assert_eq!(log.durable_offset(), model.next_offset());
    assert!(waiting.iter().all(|ticket| ticket.wait_durable().is_ok()));
    assert_eq!(log.status().health, LogHealth::Healthy);
    log.append(1, &[vec![3; 1000].into()]).unwrap();
    assert!(log.step().unwrap());
    assert!(disk.exists(&Path::new(DIR).join(RESERVE_NAME)).unwrap());
}

#[test]
fn f16_a_log_on_a_full_disk_can_be_opened_and_closed_while_frames_wait_for_room() {
    let disk = MemDisk::new();
    let log = open(&disk);
    disk.set_capacity(Some(disk.used_bytes()));
    let mut model = Model::default();
    while model.append(&log, 1, vec![4; 1000]).is_some() {
        log.step().unwrap();
    }
    let acked = log.durable_offset();
    log.close();
    let log = open(&disk);
    model.check(&log, acked);
}

fn threaded(disk: Arc<dyn Disk>) -> crate::Log {
    try_open(disk, crate::LogOptions { driver: crate::Driver::Thread, ..options() }).unwrap()
}

#[test]
fn f15_every_waiter_of_a_failed_sync_is_told_by_the_running_log() {
    let disk = MemDisk::new();
    let broken = faulty(&disk);
    let log = threaded(Arc::new(broken.clone()));
    log.append(1, &[]).unwrap().wait_durable().unwrap();
    broken.fail_from(OpKind::SyncData, 1, Fault::Eio);
    let told: Vec<bool> = std::thread::scope(|scope| {
        let waiters: Vec<_> = (0..16)
            .map(|_| {
                scope.spawn(|| match log.append(1, &[vec![1; 100].into()]) {
                    Ok(ticket) => ticket.wait_durable().is_err(),
                    Err(error) => matches!(error, AppendError::Stopped(LogError::Poisoned { .. })),
                })
            })
            .collect();
        waiters.into_iter().map(|waiter| waiter.join().unwrap()).collect()
    });
    assert!(told.into_iter().all(|told| told));
    assert_eq!(log.durable_offset(), 1);
    assert!(log.subscribe().borrow().stopped.is_some());
    drop(log);
    assert!(open(&disk.kill()).next_offset() >= 1);
}

#[test]
fn f16_the_running_log_refuses_on_a_full_disk_and_goes_on_by_itself() {
    let disk = MemDisk::new();
    let log = threaded(Arc::new(disk.clone()));
    disk.set_capacity(Some(disk.used_bytes()));
    let mut tickets = Vec::new();
    let refused = loop {
        match log.append(1, &[vec![2; 1000].into()]) {
            Ok(ticket) => tickets.push(ticket),
            Err(error) => break error,
        }
        assert!(tickets.len() < 900, "the queue is bounded");
    };
    assert!(refused.is_retryable());
    disk.set_capacity(None);
    for ticket in &tickets {
        ticket.wait_durable().unwrap();
    }
    assert_eq!(log.durable_offset(), tickets.len() as u64);
    let mut model = Model::default();
    model.0.extend(log.read(0).unwrap().map(Result::unwrap));
    log.close();
    model.check(&open(&disk), tickets.len() as u64);
}

#[test]
fn f16_a_running_log_that_waits_for_room_can_be_closed_and_tells_those_who_wait() {
    let disk = MemDisk::new();
    let log = threaded(Arc::new(disk.clone()));
    disk.set_capacity(Some(disk.used_bytes()));
    let mut tickets = Vec::new();
    while let Ok(ticket) = log.append(1, &[vec![2; 1000].into()]) {
        tickets.push(ticket);
    }
    log.close();
    let acked = tickets.iter().filter(|ticket| ticket.wait_durable().is_ok()).count() as u64;
    assert_eq!(acked, log.durable_offset());
    assert!(open(&disk.kill()).next_offset() >= acked);
}
