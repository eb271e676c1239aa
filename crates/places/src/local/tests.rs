use std::fs;
use std::io::Read;
use std::os::unix::fs::symlink;
use std::sync::atomic::{AtomicBool, Ordering};

use lakegate_formats::Input;

use super::*;
use crate::listing::ListOptions;

/// A root with one file, a neighbour outside of it, and a data folder inside of it.
struct Scene {
    dir: tempfile::TempDir,
}

impl Scene {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for folder in ["root/API Error", "outside", "root/data/wal", "root/data/staging"] {
            fs::create_dir_all(dir.path().join(folder)).unwrap();
        }
        for (file, text) in [
            ("root/a.csv", "inside"),
            ("root/API Error/b.csv", "event"),
            ("outside/secret.csv", "secret"),
            ("root/data/wal/1.seg", "log"),
            ("root/data/staging/s.csv", "staged"),
        ] {
            fs::write(dir.path().join(file), text).unwrap();
        }
        Self { dir }
    }

    fn at(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    fn folders(&self) -> Folders {
        let settings = PlacesSettings {
            roots: vec![self.at("root")],
            kept_out: vec![self.at("root/data")],
            let_in: vec![self.at("root/data/staging")],
            ..PlacesSettings::default()
        };
        Folders::new(&settings, None)
    }

    fn read(&self, path: impl AsRef<Path>) -> Result<String, PlaceError> {
        let input = LocalInput::open(&self.folders().resolve(path.as_ref())?)?;
        let mut text = String::new();
        input.stream(0).unwrap().read_to_string(&mut text).unwrap();
        Ok(text)
    }
}

#[test]
fn files_in_a_root_are_read_by_whole_and_by_relative_paths() {
    let scene = Scene::new();
    assert_eq!(scene.read(scene.at("root/a.csv")).unwrap(), "inside");
    assert_eq!(scene.read("a.csv").unwrap(), "inside");
    assert_eq!(scene.read(scene.at("root/API Error/../a.csv")).unwrap(), "inside");
    assert_eq!(scene.read(scene.at("root/data/staging/s.csv")).unwrap(), "staged");
    let input = LocalInput::open(&scene.folders().resolve(Path::new("a.csv")).unwrap()).unwrap();
    assert_eq!(input.read_at(2, 3).unwrap(), "sid");
    assert!(input.read_at(4, 3).is_err());
    assert_eq!(input.read_ranges(&[0..1, 5..6]).unwrap(), ["i", "e"]);
}

#[test]
fn s17_paths_that_leave_the_root_are_refused_whatever_is_there() {
    let scene = Scene::new();
    let outside = scene.at("outside/secret.csv");
    let climbing = scene.at("root/../outside/secret.csv");
    let absent = scene.at("outside/absent.csv");
    for path in [outside.as_path(), &climbing, &absent, Path::new("/etc/passwd"), Path::new("../outside/secret.csv")] {
        let refused = scene.read(path).unwrap_err();
        assert!(matches!(refused, PlaceError::Forbidden { setting: "imports.roots", .. }), "{path:?}: {refused}");
    }
    for path in ["%2e%2e%2foutside/secret.csv", "..%252foutside", "..\\outside\\secret.csv", "..\u{2215}outside"] {
        assert!(matches!(scene.read(path), Err(PlaceError::NotFound { .. })), "{path}");
    }
}

#[test]
fn s17_the_servers_own_files_are_refused() {
    let scene = Scene::new();
    let refused = scene.read("data/wal/1.seg").unwrap_err();
    assert!(refused.to_string().contains("server's own files"), "{refused}");
    let options = ListOptions { recursive: true, pattern: None };
    let listing = scene.folders().list(&scene.at("root"), &options, 100).unwrap();
    let names: Vec<_> = listing.files.iter().map(|f| f.relative.as_str()).collect();
    assert_eq!(names, ["API Error/b.csv", "a.csv"]);
}

#[test]
fn s17_devices_pipes_folders_and_the_kernels_files_are_refused() {
    let scene = Scene::new();
    let pipe = scene.at("root/pipe");
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0).unwrap();
    assert!(matches!(scene.read("pipe"), Err(PlaceError::NotAFile { what: "a pipe", .. })));
    assert!(matches!(scene.read("API Error"), Err(PlaceError::NotAFile { what: "a folder", .. })));
    let everything = PlacesSettings { roots: vec!["/".into()], ..PlacesSettings::default() };
    let open = |path: &str| LocalInput::open(&Folders::new(&everything, None).resolve(Path::new(path))?);
    assert!(matches!(open("/dev/zero"), Err(PlaceError::NotAFile { what: "a device", .. })));
    for path in ["/proc/self/environ", "/proc/version", "/sys/kernel/uevent_seqnum"] {
        if Path::new(path).exists() {
            assert!(matches!(open(path), Err(PlaceError::NotAFile { .. })), "{path}");
        }
    }
}

#[test]
fn s18_links_are_followed_inside_the_root_alone() {
    let scene = Scene::new();
    symlink(scene.at("root/a.csv"), scene.at("root/inside_link")).unwrap();
    symlink("../root/a.csv", scene.at("root/relative_link")).unwrap();
    symlink(scene.at("outside/secret.csv"), scene.at("root/outside_link")).unwrap();
    symlink(scene.at("outside"), scene.at("root/outside_dir")).unwrap();
    symlink("loop", scene.at("root/loop")).unwrap();
    assert_eq!(scene.read("inside_link").unwrap(), "inside");
    assert_eq!(scene.read("relative_link").unwrap(), "inside");
    for path in ["outside_link", "outside_dir/secret.csv", "loop"] {
        let refused = scene.read(path).unwrap_err();
        assert!(matches!(refused, PlaceError::Forbidden { .. } | PlaceError::Denied { .. }), "{path}: {refused}");
    }
    let listing =
        scene.folders().list(&scene.at("root"), &ListOptions { recursive: true, pattern: None }, 100).unwrap();
    assert_eq!(listing.files.len(), 2, "a file is listed once, whatever links lead to it: {:?}", listing.files);
}

#[test]
fn s18_a_link_that_is_swapped_between_check_and_opening_never_leads_outside() {
    let scene = Scene::new();
    let folders = scene.folders();
    let (target, inside, outside) = (scene.at("root/swapped"), scene.at("root/a.csv"), scene.at("outside/secret.csv"));
    symlink(&inside, &target).unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let spare = scene.at("root/.spare");
            while !stop.load(Ordering::Relaxed) {
                for leads_to in [&outside, &inside] {
                    symlink(leads_to, &spare).unwrap();
                    fs::rename(&spare, &target).unwrap();
                }
                // The name itself is a file now and then: what was resolved as a file is swapped for a link.
                fs::write(&spare, "inside").unwrap();
                fs::rename(&spare, &target).unwrap();
            }
        });
        for _ in 0..3000 {
            if let Ok(input) = folders.resolve(&target).and_then(|found| LocalInput::open(&found)) {
                assert_eq!(input.read_at(0, 6).unwrap(), "inside");
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
}

#[test]
fn s18_odd_names_are_read_and_escaped_in_messages() {
    let scene = Scene::new();
    let odd = "x\n\u{1b}[2J;rm -rf";
    fs::write(scene.at("root").join(odd), "odd").unwrap();
    assert_eq!(scene.read(odd).unwrap(), "odd");
    let long = "y".repeat(255);
    fs::write(scene.at("root").join(&long), "long").unwrap();
    assert_eq!(scene.read(&long).unwrap(), "long");
    assert!(matches!(scene.read("z".repeat(256)), Err(PlaceError::Invalid { .. } | PlaceError::NotFound { .. })));
    fs::remove_file(scene.at("root").join(odd)).unwrap();
    let message = scene.read(odd).unwrap_err().to_string();
    assert!(!message.contains(['\n', '\u{1b}']), "{message:?}");
}

#[test]
fn f54_a_file_that_changes_while_it_is_read_is_told() {
    let scene = Scene::new();
    let input = LocalInput::open(&scene.folders().resolve(Path::new("a.csv")).unwrap()).unwrap();
    input.check_unchanged().unwrap();
    // Replaced by another of its name: the open one is still the old one, whole.
    fs::write(scene.at("root/.new"), "other contents").unwrap();
    fs::rename(scene.at("root/.new"), scene.at("root/a.csv")).unwrap();
    input.check_unchanged().unwrap();
    assert_eq!(input.read_at(0, 6).unwrap(), "inside");
    // Written to in place.
    let input = LocalInput::open(&scene.folders().resolve(Path::new("a.csv")).unwrap()).unwrap();
    fs::write(scene.at("root/a.csv"), "oth").unwrap();
    assert!(matches!(input.check_unchanged(), Err(PlaceError::Changed { .. })));
    assert!(input.stream(0).unwrap().read_to_end(&mut Vec::new()).is_err());
}

#[test]
fn a_listing_is_bounded() {
    let scene = Scene::new();
    for n in 0..20 {
        fs::write(scene.at(&format!("root/{n}.txt")), "").unwrap();
    }
    let refused = scene.folders().list(&scene.at("root"), &ListOptions::default(), 10).unwrap_err();
    assert!(matches!(refused, PlaceError::TooLarge { setting: "imports.limits.files_max", .. }));
}

#[test]
fn s15_a_tenant_reads_its_own_folder_alone() {
    let scene = Scene::new();
    for tenant in ["acme", "other"] {
        fs::create_dir_all(scene.at(&format!("drop/{tenant}"))).unwrap();
        fs::write(scene.at(&format!("drop/{tenant}/x.csv")), tenant).unwrap();
    }
    let settings = PlacesSettings { roots: vec![scene.at("drop/{tenant}")], ..PlacesSettings::default() };
    let acme = Folders::new(&settings, Some("acme"));
    assert!(acme.resolve(&scene.at("drop/acme/x.csv")).is_ok());
    assert!(matches!(acme.resolve(&scene.at("drop/other/x.csv")), Err(PlaceError::Forbidden { .. })));
    assert!(matches!(
        Folders::new(&settings, None).resolve(&scene.at("drop/acme/x.csv")),
        Err(PlaceError::Forbidden { .. })
    ));
}
