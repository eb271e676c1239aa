//! `lakegate key`: API keys in the data folder, made and revoked while the server runs.
//!
//! A key is printed once, when it is made; the file holds its hash.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use lakegate_access::{Grants, KEY_FILE, KeyFileError, KeyRecord, NewKey, change_keys, read_keys};
use lakegate_env::{Clock, RealDisk, SystemClock, SystemRandom};
use lakegate_model::TenantId;
use serde_json::json;

use super::config::load;
use super::exit::Exit;
use super::output::{Align, note, plain, print, table};
use crate::config::{Flags, Period};
use crate::http::rfc3339;

/// `lakegate key …`
#[derive(Debug, Subcommand)]
pub(crate) enum KeyCommand {
    /// Make a key and print it, once
    #[command(
        after_help = "Examples:\n  lakegate key create --tenant acme --name shop --permission write:cart\n  lakegate key create --tenant acme --name reports --permission read --expires 90d\n  lakegate key create --tenant ops --name prometheus --permission operator"
    )]
    Create(CreateArgs),
    /// List the keys, without their secrets
    #[command(after_help = "Examples:\n  lakegate key ls\n  lakegate key ls --json | jq '.[] | select(.usable)'")]
    Ls(LsArgs),
    /// End a key; what is open with it ends within seconds
    #[command(after_help = "Example:\n  lakegate key revoke k7wq2m9x4abc")]
    Revoke(RevokeArgs),
    /// Make a key in the place of another, which still holds for a while
    #[command(after_help = "Example:\n  lakegate key rotate k7wq2m9x4abc --overlap 24h")]
    Rotate(RotateArgs),
    /// Remove keys that are revoked or over from the list
    #[command(after_help = "Example:\n  lakegate key prune")]
    Prune(LsArgs),
}

/// Where the keys are.
#[derive(Debug, Args)]
pub(crate) struct Place {
    /// The configuration file, for its node.data_dir
    #[arg(long, short, env = "LAKEGATE_CONFIG", hide_env_values = true)]
    config: Option<PathBuf>,
    /// The folder of everything that the server keeps (node.data_dir)
    #[arg(long)]
    data_dir: Option<String>,
}

impl Place {
    fn file(&self) -> Result<PathBuf, Exit> {
        let flags = Flags { data_dir: self.data_dir.clone(), ..Flags::default() };
        Ok(load(self.config.as_deref(), flags)?.data_dir().join(KEY_FILE))
    }
}

/// A key to make.
#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    #[command(flatten)]
    place: Place,
    /// Whose records it may touch
    #[arg(long)]
    tenant: String,
    /// What it is for
    #[arg(long, default_value = "")]
    name: String,
    /// What it may do: write, read, admin, each alone or for streams as in write:orders-*; operator
    #[arg(long = "permission", required = true)]
    permissions: Vec<String>,
    /// When it ends, from now, such as 90d
    #[arg(long)]
    expires: Option<String>,
    /// Print JSON, with what a configuration file needs
    #[arg(long)]
    json: bool,
}

/// What to list.
#[derive(Debug, Args)]
pub(crate) struct LsArgs {
    #[command(flatten)]
    place: Place,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// Which key to end.
#[derive(Debug, Args)]
pub(crate) struct RevokeArgs {
    #[command(flatten)]
    place: Place,
    /// Its id
    id: String,
}

/// Which key to replace.
#[derive(Debug, Args)]
pub(crate) struct RotateArgs {
    #[command(flatten)]
    place: Place,
    /// Its id
    id: String,
    /// How long the former one still holds
    #[arg(long, default_value = "24h")]
    overlap: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(command: KeyCommand) -> Exit {
    let done = match command {
        KeyCommand::Create(args) => create(&args),
        KeyCommand::Ls(args) => list(&args),
        KeyCommand::Revoke(args) => revoke(&args),
        KeyCommand::Rotate(args) => rotate(&args),
        KeyCommand::Prune(args) => prune(&args),
    };
    done.unwrap_or_else(|exit| exit)
}

fn refuse(error: impl std::fmt::Display) -> Exit {
    note(&format!("error: {error}"));
    Exit::Failure
}

fn now_us() -> i64 {
    SystemClock::default().wall_us()
}

fn us_of(period: &str) -> Result<i64, Exit> {
    let period = Period::parse(period).map_err(refuse)?;
    Ok(i64::try_from(period.get().as_micros()).unwrap_or(i64::MAX))
}

fn change<T>(path: &Path, change: impl FnOnce(&mut Vec<KeyRecord>) -> Result<T, KeyFileError>) -> Result<T, Exit> {
    if let Some(folder) = path.parent() {
        crate::serve::make_folder(folder).map_err(refuse)?;
    }
    change_keys(&RealDisk, path, change).map_err(refuse)
}

fn create(args: &CreateArgs) -> Result<Exit, Exit> {
    let path = args.place.file()?;
    let tenant = TenantId::new(&args.tenant).map_err(refuse)?;
    Grants::parse(&args.permissions).map_err(refuse)?;
    if args.name.len() > 200 {
        return Err(refuse("a name has at most 200 bytes"));
    }
    let expires = args.expires.as_deref().map(us_of).transpose()?;
    let key = NewKey::generate(&SystemRandom);
    let record = KeyRecord {
        id: key.id.clone(),
        hash: key.hash(),
        tenant,
        name: args.name.clone(),
        permissions: args.permissions.clone(),
        created_us: now_us(),
        expires_us: expires.map(|us| now_us().saturating_add(us)),
        revoked_us: None,
    };
    change(&path, |keys| {
        keys.push(record.clone());
        Ok(())
    })?;
    show_new(&key, &record, args.json);
    Ok(Exit::Done)
}

fn show_new(key: &NewKey, record: &KeyRecord, as_json: bool) {
    if as_json {
        let permissions = &record.permissions;
        let text = json!({ "id": key.id, "key": key.key, "hash": key.hash(), "tenant": record.tenant, "permissions": permissions });
        print(&format!("{text}\n"));
        return;
    }
    print(&format!("{}\n", key.key));
    note(&format!("the key {} of {} is shown this once; keep it where secrets are kept", key.id, record.tenant));
}

fn revoke(args: &RevokeArgs) -> Result<Exit, Exit> {
    change(&args.place.file()?, |keys| {
        let key = usable(keys, &args.id)?;
        key.revoked_us = Some(now_us());
        Ok(())
    })?;
    note(&format!("the key {} is revoked; a running server ends what is open with it within seconds", plain(&args.id)));
    Ok(Exit::Done)
}

fn usable<'k>(keys: &'k mut [KeyRecord], id: &str) -> Result<&'k mut KeyRecord, KeyFileError> {
    let found = keys.iter_mut().find(|key| key.id == id && key.is_usable(now_us()));
    found.ok_or_else(|| KeyFileError::Unknown(plain(id)))
}

fn rotate(args: &RotateArgs) -> Result<Exit, Exit> {
    let overlap = us_of(&args.overlap)?;
    let key = NewKey::generate(&SystemRandom);
    let record = change(&args.place.file()?, |keys| {
        let former = usable(keys, &args.id)?;
        let fresh = KeyRecord { id: key.id.clone(), hash: key.hash(), created_us: now_us(), ..former.clone() };
        let end = now_us().saturating_add(overlap);
        former.expires_us = Some(former.expires_us.map_or(end, |own| own.min(end)));
        keys.push(fresh.clone());
        Ok(fresh)
    })?;
    show_new(&key, &record, args.json);
    note(&format!("the former key {} holds for {} more", plain(&args.id), args.overlap));
    Ok(Exit::Done)
}

fn prune(args: &LsArgs) -> Result<Exit, Exit> {
    let removed = change(&args.place.file()?, |keys| {
        let before = keys.len();
        keys.retain(|key| key.is_usable(now_us()));
        Ok(before - keys.len())
    })?;
    note(&format!("{removed} keys were removed"));
    Ok(Exit::Done)
}

fn list(args: &LsArgs) -> Result<Exit, Exit> {
    let keys = read_keys(&RealDisk, &args.place.file()?).map_err(refuse)?;
    let state = |key: &KeyRecord| match (key.revoked_us, key.is_usable(now_us())) {
        (Some(_), _) => "revoked",
        (None, false) => "expired",
        (None, true) => "usable",
    };
    if args.json {
        let entry = |key: &KeyRecord| {
            json!({
                "id": key.id, "tenant": key.tenant, "name": key.name, "permissions": key.permissions,
                "state": state(key), "usable": key.is_usable(now_us()), "created": rfc3339(key.created_us),
                "expires": key.expires_us.map(rfc3339), "revoked": key.revoked_us.map(rfc3339),
            })
        };
        print(&format!("{}\n", json!(keys.iter().map(entry).collect::<Vec<_>>())));
        return Ok(Exit::Done);
    }
    let headings =
        ["id", "tenant", "name", "permissions", "state", "created", "expires"].map(|name| (name, Align::Left));
    let row = |key: &KeyRecord| {
        vec![
            key.id.clone(),
            key.tenant.to_string(),
            plain(&key.name),
            key.permissions.join(" "),
            state(key).to_owned(),
            rfc3339(key.created_us),
            key.expires_us.map_or_else(|| "never".to_owned(), rfc3339),
        ]
    };
    print(&table(&headings, &keys.iter().map(row).collect::<Vec<_>>()));
    Ok(Exit::Done)
}
