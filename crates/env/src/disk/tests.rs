use std::io::{self, IoSlice};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use super::*;

/// What every disk must do, whichever it is.
fn conformance(disk: &dyn Disk, dir: &Path) {
    disk.create_dir_all(&dir.join("a/b")).unwrap();
    let inside = dir.join("a/b");
    let path = inside.join("one");
    let file = disk.create_new(&path).unwrap();
    assert_eq!(disk.create_new(&path).err().unwrap().kind(), io::ErrorKind::AlreadyExists);
    file.write_all_at(b"hello", 0).unwrap();
    file.write_vectored_at(&[IoSlice::new(b""), IoSlice::new(b" wor"), IoSlice::new(b"ld")], 5).unwrap();
    file.sync_data().unwrap();
    assert_eq!(disk.read(&path).unwrap(), b"hello world");
    file.allocate_zeroed(20).unwrap();
    assert_eq!((file.len().unwrap(), disk.len(&path).unwrap()), (20, 20));
    assert_eq!(disk.read(&path).unwrap(), b"hello world\0\0\0\0\0\0\0\0\0");
    file.truncate(5).unwrap();
    let mut buffer = [0; 10];
    assert_eq!(read_full_at(&*disk.open(&path).unwrap(), &mut buffer, 1).unwrap(), 4);
    assert!(disk.open_read(&path).unwrap().write_all_at(b"x", 0).is_err());
    disk.write_atomic(&inside.join("two"), b"2").unwrap();
    disk.write_atomic(&inside.join("two"), b"22").unwrap();
    disk.rename(&path, &inside.join("three")).unwrap();
    disk.sync_dir(&inside).unwrap();
    assert_eq!(disk.list(&inside).unwrap(), ["three", "two"]);
    assert_eq!(disk.read(&inside.join("two")).unwrap(), b"22");
    disk.remove(&inside.join("three")).unwrap();
    assert!(!disk.exists(&inside.join("three")).unwrap());
    assert_eq!(disk.remove(&inside.join("three")).err().unwrap().kind(), io::ErrorKind::NotFound);
    assert_eq!(disk.open(&path).err().unwrap().kind(), io::ErrorKind::NotFound);
    let lock = disk.lock_dir(&inside).unwrap();
    assert_eq!(disk.lock_dir(&inside).err().unwrap().kind(), io::ErrorKind::WouldBlock);
    drop(lock);
    disk.lock_dir(&inside).unwrap();
}

#[test]
fn the_memory_disk_does_what_a_disk_must() {
    conformance(&MemDisk::new(), Path::new("/data"));
}

#[test]
fn a_faulty_disk_without_faults_does_what_a_disk_must() {
    conformance(&FaultyDisk::new(Arc::new(MemDisk::new())), Path::new("/data"));
}

#[test]
fn the_real_disk_does_what_a_disk_must_and_keeps_others_out() {
    let dir = tempfile::tempdir().unwrap();
    conformance(&RealDisk, dir.path());
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&dir.path().join("a/b/two")), 0o600);
    assert_eq!(mode(&dir.path().join("a/b")), 0o700);
}

#[test]
fn a_power_loss_keeps_what_was_synced_and_may_lose_the_rest() {
    let dir = Path::new("/d");
    let (mut lost, mut kept, mut torn, mut unnamed) = (0, 0, 0, 0);
    for seed in 0..200 {
        let disk = MemDisk::new();
        disk.create_dir_all(dir).unwrap();
        let file = disk.create_new(&dir.join("f")).unwrap();
        file.write_all_at(&[1; 2048], 0).unwrap();
        file.sync_data().unwrap();
        disk.sync_dir(dir).unwrap();
        file.write_all_at(&[2; 2048], 0).unwrap();
        disk.create_new(&dir.join("g")).unwrap();
        let after = disk.crash(seed);
        let content = after.read(&dir.join("f")).unwrap();
        assert_eq!(content.len(), 2048);
        assert_eq!(disk.read(&dir.join("f")).unwrap(), [2; 2048], "the crash is a copy");
        for sector in content.chunks(512) {
            assert!(sector.iter().all(|byte| *byte == sector[0]), "a sector is written as a whole");
        }
        match content.iter().filter(|byte| **byte == 2).count() {
            0 => lost += 1,
            2048 => kept += 1,
            _ => torn += 1,
        }
        unnamed += usize::from(!after.exists(&dir.join("g")).unwrap());
    }
    assert!(lost > 0 && kept > 0 && torn > 0 && unnamed > 0, "{lost} {kept} {torn} {unnamed}");
}

#[test]
fn an_atomic_write_survives_a_power_loss_as_the_old_or_the_new_at_every_failing_step() {
    let path = Path::new("/d/f");
    for kind in OpKind::ALL {
        for seed in 0..20 {
            let memory = MemDisk::new();
            let disk = FaultyDisk::new(Arc::new(memory.clone()));
            disk.create_dir_all(Path::new("/d")).unwrap();
            disk.write_atomic(path, b"old").unwrap();
            disk.fail_once(kind, 1, if seed % 2 == 0 { Fault::Eio } else { Fault::ShortWrite });
            let written = disk.write_atomic(path, b"new");
            let content = memory.crash(seed).read(path).unwrap();
            assert!(content == b"old" || content == b"new");
            assert!(
                written.is_err() || content == b"new",
                "an atomic write that returned is durable ({kind:?}, seed {seed})"
            );
        }
    }
}

#[test]
fn a_full_memory_disk_refuses_growth_and_allows_overwriting() {
    let disk = MemDisk::new();
    disk.create_dir_all(Path::new("/d")).unwrap();
    let file = disk.create_new(Path::new("/d/f")).unwrap();
    disk.set_capacity(Some(100));
    file.allocate_zeroed(100).unwrap();
    assert!(is_out_of_room(&file.allocate_zeroed(101).unwrap_err()));
    file.write_all_at(&[1; 100], 0).unwrap();
    disk.remove(Path::new("/d/f")).unwrap();
    assert_eq!(disk.used_bytes(), 0);
}

#[test]
fn the_chosen_operation_fails_and_no_other() {
    let disk = FaultyDisk::new(Arc::new(MemDisk::new()));
    disk.create_dir_all(Path::new("/d")).unwrap();
    let file = disk.create_new(Path::new("/d/f")).unwrap();
    disk.fail_once(OpKind::SyncData, 2, Fault::Eio);
    disk.fail_from(OpKind::Write, 3, Fault::Enospc);
    assert!(file.sync_data().is_ok() && file.sync_data().is_err() && file.sync_data().is_ok());
    let writes: Vec<bool> = (0..5).map(|_| file.write_all_at(b"x", 0).is_ok()).collect();
    assert_eq!(writes, [true, true, false, false, false]);
    assert_eq!((disk.count(OpKind::Write), disk.faults_acted()), (5, 4));
    disk.heal();
    file.write_all_at(b"x", 0).unwrap();
}
