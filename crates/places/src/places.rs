//! The way to all places.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use lakegate_env::{Clock, Random};
use lakegate_formats::Input;
use tokio::runtime::Handle;
use url::Url;

use crate::error::PlaceError;
use crate::http::{Resolver, check, connect};
use crate::identity::FileIdentity;
use crate::listing::{ListOptions, Listing};
use crate::local::{Folders, LocalInput, io_error};
use crate::location::{Location, local_uri, without_secrets};
use crate::remote::{Attempts, RemoteInput, Shared, open};
use crate::s3::Store;
use crate::settings::PlacesSettings;
use crate::text::shown;

/// A file, open.
pub struct Opened {
    /// Its bytes.
    pub input: Arc<dyn Input>,
    /// Which file it is.
    pub identity: FileIdentity,
    /// Where it was found, links resolved.
    pub location: Location,
    checked: Checked,
}

/// What is asked whether the file is still the same.
enum Checked {
    Local(Arc<LocalInput>),
    Remote(Arc<RemoteInput>),
}

impl Opened {
    /// Whether what was read is one version of the file, now that it was read. Of a remote file each answer was compared
    /// with the first; its server is asked once more, for who writes into a file while it is sent changes no answer's
    /// head.
    ///
    /// # Errors
    /// Someone wrote to it meanwhile, or the server does not say.
    pub fn check_unchanged(&self) -> Result<(), PlaceError> {
        match &self.checked {
            Checked::Local(input) => input.check_unchanged(),
            Checked::Remote(input) => input.check_unchanged(),
        }
    }
}

/// The way to all places that the configuration allows. Blocks: not for threads that run tasks.
pub struct Places {
    settings: PlacesSettings,
    shared: Arc<Shared>,
    resolver: Arc<dyn Resolver>,
    store: OnceLock<Result<Store, PlaceError>>,
}

impl Places {
    /// `handle` is where requests to servers run.
    #[must_use]
    pub fn new(
        settings: PlacesSettings,
        handle: Handle,
        resolver: Arc<dyn Resolver>,
        clock: Arc<dyn Clock>,
        random: Arc<dyn Random>,
    ) -> Self {
        let shared =
            Shared { limits: settings.limits.clone(), random, clock, handle, spool_dir: settings.spool_dir.clone() };
        Self { settings, shared: Arc::new(shared), resolver, store: OnceLock::new() }
    }

    /// Opens a path, an address or an object for `tenant`.
    ///
    /// # Errors
    /// See [`PlaceError`]. Nothing outside of what the configuration allows was touched.
    pub fn open(&self, text: &str, tenant: Option<&str>) -> Result<Opened, PlaceError> {
        match Location::parse(text)? {
            Location::Local(path) => self.open_local(&path, tenant),
            Location::Http(url) => self.open_http(&url),
            Location::S3 { bucket, key } => self.open_s3(bucket, key, tenant),
        }
    }

    fn open_local(&self, path: &Path, tenant: Option<&str>) -> Result<Opened, PlaceError> {
        let found = Folders::new(&self.settings, tenant).resolve(path)?;
        let input = Arc::new(LocalInput::open(&found)?);
        let bytes = input.len().unwrap_or(0);
        if bytes > self.settings.limits.file_bytes_max {
            return Err(PlaceError::TooLarge {
                place: input.name().to_owned(),
                found: format!("{bytes} bytes"),
                limit: self.settings.limits.file_bytes_max,
                setting: "imports.limits.file_bytes_max",
            });
        }
        let identity = FileIdentity { uri: local_uri(&found.path), version: input.version().to_owned() };
        Ok(Opened {
            input: input.clone(),
            identity,
            location: Location::Local(found.path),
            checked: Checked::Local(input),
        })
    }

    fn open_http(&self, url: &Url) -> Result<Opened, PlaceError> {
        let place = shown(&without_secrets(url));
        let input = self.shared.handle.block_on(async {
            let mut attempts = Attempts::new(self.shared.clone(), &place);
            loop {
                let opened = async {
                    let (endpoint, response) =
                        connect(url, &self.settings.hosts, &*self.resolver, &self.shared).await?;
                    open(endpoint.named(place.clone()), response).await
                };
                match opened.await {
                    Ok(input) => return Ok::<RemoteInput, PlaceError>(input),
                    Err(failure) => attempts.failed(failure).await?,
                }
            }
        })?;
        let identity = FileIdentity { uri: http_identity(url), version: input.version() };
        let (input, location) = (Arc::new(input), Location::Http(url.clone()));
        Ok(Opened { input: input.clone(), identity, location, checked: Checked::Remote(input) })
    }

    fn open_s3(&self, bucket: String, key: String, tenant: Option<&str>) -> Result<Opened, PlaceError> {
        self.check_bucket(&bucket, &key, tenant)?;
        let store = self.store()?;
        let location = Location::S3 { bucket: bucket.clone(), key: key.clone() };
        if key.is_empty() || key.ends_with('/') {
            return Err(PlaceError::NotAFile { place: location.shown(), what: "a folder of objects" });
        }
        let input = self.shared.handle.block_on(async {
            let mut attempts = Attempts::new(self.shared.clone(), &location.shown());
            loop {
                let opened = async {
                    let (endpoint, response) = store.connect(&bucket, &key).await?;
                    open(endpoint, response).await
                };
                match opened.await {
                    Ok(input) => return Ok::<RemoteInput, PlaceError>(input),
                    Err(failure) => attempts.failed(failure).await?,
                }
            }
        })?;
        let identity = FileIdentity { uri: location.uri(), version: input.version() };
        let input = Arc::new(input);
        Ok(Opened { input: input.clone(), identity, location, checked: Checked::Remote(input) })
    }

    /// Opens a file that this process itself put into the spool.
    ///
    /// # Errors
    /// It is not there.
    pub fn open_spooled(&self, name: &str, identity: FileIdentity) -> Result<Opened, PlaceError> {
        let spool = PlacesSettings { roots: vec![self.settings.spool_dir.clone()], ..PlacesSettings::default() };
        let found = Folders::new(&spool, None).resolve(Path::new(name))?;
        let input = Arc::new(LocalInput::open(&found)?);
        Ok(Opened {
            input: input.clone(),
            identity,
            location: Location::Local(found.path),
            checked: Checked::Local(input),
        })
    }

    /// Whether a web address may be asked, without asking it. Its name is resolved.
    ///
    /// # Errors
    /// It may not, or its name has no address.
    pub fn check(&self, text: &str) -> Result<(), PlaceError> {
        match Location::parse(text)? {
            Location::Http(url) => self.shared.handle.block_on(check(&url, &self.settings.hosts, &*self.resolver)),
            Location::Local(_) | Location::S3 { .. } => Ok(()),
        }
    }

    /// Lists the files of a folder or prefix. A text with wildcards is a folder and a pattern; a file is listed as
    /// itself.
    ///
    /// # Errors
    /// See [`PlaceError`].
    pub fn list(&self, text: &str, tenant: Option<&str>, options: &ListOptions) -> Result<Listing, PlaceError> {
        let named = Location::parse(text)?;
        let (location, options) = match named.split_glob() {
            // A name that holds a wildcard's character and is there is meant as it is written.
            Some(_) if self.is_there(&named, tenant) => (named, options.clone()),
            Some((base, pattern)) => (base, ListOptions { recursive: options.recursive, pattern: Some(pattern) }),
            None => (named, options.clone()),
        };
        match &location {
            Location::Local(path) => {
                Folders::new(&self.settings, tenant).list(path, &options, self.settings.limits.files_max)
            }
            Location::S3 { bucket, key } => {
                self.check_bucket(bucket, key, tenant)?;
                self.shared.handle.block_on(self.store()?.list(bucket, key, &options))
            }
            Location::Http(_) => Err(PlaceError::Invalid {
                place: location.shown(),
                reason: "a web server has no listing; name each file, or read a bucket or a folder".into(),
            }),
        }
    }

    fn is_there(&self, location: &Location, tenant: Option<&str>) -> bool {
        match location {
            Location::Local(path) => Folders::new(&self.settings, tenant).resolve(path).is_ok(),
            Location::Http(_) | Location::S3 { .. } => false,
        }
    }

    /// The folder on this machine that a text leads to, for who watches it. None: it leads elsewhere.
    ///
    /// # Errors
    /// See [`PlaceError`].
    pub fn folder(&self, text: &str, tenant: Option<&str>) -> Result<Option<PathBuf>, PlaceError> {
        match Location::parse(text)? {
            Location::Local(path) => Ok(Some(Folders::new(&self.settings, tenant).resolve(&path)?.path)),
            Location::Http(_) | Location::S3 { .. } => Ok(None),
        }
    }

    /// Moves a file that was found here to another name in its folder's root or bucket.
    ///
    /// # Errors
    /// See [`PlaceError`].
    pub fn rename(&self, from: &Location, to: &Location, tenant: Option<&str>) -> Result<(), PlaceError> {
        match (from, to) {
            (Location::Local(from), Location::Local(to)) => {
                let found = Folders::new(&self.settings, tenant).resolve(from)?;
                if !to.starts_with(&found.root) {
                    return Err(PlaceError::Invalid {
                        place: shown(&to.to_string_lossy()),
                        reason: "it lies outside of the folder that the file was found in".into(),
                    });
                }
                let failed = |e: std::io::Error| io_error(to, &e);
                to.parent().map_or(Ok(()), std::fs::create_dir_all).map_err(failed)?;
                std::fs::rename(&found.path, to).map_err(failed)
            }
            (Location::S3 { bucket, key }, Location::S3 { bucket: other, key: new }) if bucket == other => {
                self.check_bucket(bucket, key, tenant)?;
                self.check_bucket(bucket, new, tenant)?;
                self.shared.handle.block_on(self.store()?.rename(bucket, key, new))
            }
            _ => Err(PlaceError::Invalid {
                place: to.shown(),
                reason: "files are moved within a folder or bucket".into(),
            }),
        }
    }

    /// Puts the tag `lakegate=imported` on an object.
    ///
    /// # Errors
    /// See [`PlaceError`]; a local file has no tags.
    pub fn tag_imported(&self, location: &Location, tenant: Option<&str>) -> Result<(), PlaceError> {
        match location {
            Location::S3 { bucket, key } => {
                self.check_bucket(bucket, key, tenant)?;
                self.shared.handle.block_on(self.store()?.tag(bucket, key, "lakegate", "imported"))
            }
            Location::Local(_) | Location::Http(_) => Err(PlaceError::Invalid {
                place: location.shown(),
                reason: "only objects of a bucket have tags".into(),
            }),
        }
    }

    fn store(&self) -> Result<&Store, PlaceError> {
        self.store.get_or_init(|| Store::new(&self.settings.s3, &self.shared)).as_ref().map_err(Clone::clone)
    }

    fn check_bucket(&self, bucket: &str, key: &str, tenant: Option<&str>) -> Result<(), PlaceError> {
        if self.settings.buckets.iter().any(|rule| rule.allows(bucket, key, tenant)) {
            return Ok(());
        }
        Err(PlaceError::Forbidden {
            place: shown(&format!("s3://{bucket}/{key}")),
            reason: "it lies in no bucket that may be read".into(),
            remedy: "add the bucket, or its part as \"bucket/prefix/\", to imports.buckets".into(),
            setting: "imports.buckets",
        })
    }
}

/// An address without its secrets, and yet another one for each query. Parameters of signatures are left out: they
/// differ each time the same file is signed.
fn http_identity(url: &Url) -> String {
    let mut bare = url.clone();
    bare.set_query(None);
    bare.set_fragment(None);
    let of_signature = |name: &str| {
        let name = name.to_ascii_lowercase();
        name.starts_with("x-amz-")
            || name.starts_with("x-goog-")
            || matches!(
                name.as_str(),
                "signature" | "sig" | "expires" | "se" | "sp" | "sv" | "awsaccesskeyid" | "token"
            )
    };
    let kept: Vec<String> = url
        .query_pairs()
        .filter(|(name, _)| !of_signature(name))
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    if kept.is_empty() {
        return bare.to_string();
    }
    format!("{bare}?#{:016x}", xxhash_rust::xxh3::xxh3_64(kept.join("&").as_bytes()))
}
