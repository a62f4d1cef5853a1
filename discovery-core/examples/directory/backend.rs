//! A backend that is a directory: one file per instance, polled.
//!
//! `<root>/services/<service>/<id>` holds the owner's token, a line break and the instance as JSON.
//! A file appears and changes by a rename, so that no reader sees half of one. Its owner touches
//! it, and a file that was not touched for a TTL counts as gone.
//!
//! Whoever takes a file over leaves a note for its former owner, `<root>/superseded/<token>`.
//! Without it, an owner whose successor left before the next heartbeat would put its file back.
//!
//! It has limits: states have no order, and ownership is checked before the rename rather than with
//! it, so two owners that act at the same moment may both believe that they won until the next
//! heartbeat. A note for an owner that was killed stays. Its file operations are short and
//! blocking.

use std::{
    fs::{self, File},
    hash::{DefaultHasher, Hash, Hasher},
    io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};

use async_trait::async_trait;
use discovery_core::{
    Backoff, Claim, Error, ErrorKind, Instance, Registration, Registry, Resolver, ServiceName, Snapshot, Status,
    UpdateStream,
    backend::{BadEntry, Entry, Feed, Recovered, Recovery, RegistrationBackend, Source, StatusWriter},
};
use tokio::{
    sync::{mpsc, oneshot},
    task::AbortHandle,
    time::sleep,
};

/// A registry in a directory, as one process holds it.
#[derive(Debug)]
pub(crate) struct Directory {
    files: Files,
    owners: Mutex<Vec<AbortHandle>>,
    resolver: Recovered<Polled>,
}

impl Directory {
    /// Creates an empty registry in `root`, or keeps the one that is there.
    pub(crate) fn create(root: &Path) -> Result<(), Error> {
        [SERVICES, SUPERSEDED, TEMPORARY]
            .iter()
            .try_for_each(|folder| fs::create_dir_all(root.join(folder)))
            .map_err(failed)
    }

    /// Opens a handle on the registry in `root`, whether or not it can be reached now.
    pub(crate) fn open(root: &Path, ttl: Duration) -> Result<Self, Error> {
        let files = Files { root: root.to_owned(), ttl };
        let recovery =
            Recovery::default().backoff(Backoff::new(Duration::from_millis(10), Duration::from_millis(100))?);
        let resolver = Recovered::with_recovery(Polled { files: files.clone(), open: Arc::default() }, recovery);
        Ok(Self { files, owners: Mutex::default(), resolver })
    }

    /// Stops all heartbeats, as if the process had been killed.
    pub(crate) fn abandon(&self) {
        self.owners.lock().unwrap_or_else(PoisonError::into_inner).drain(..).for_each(|owner| owner.abort());
    }

    /// Returns how many bad files were skipped.
    pub(crate) fn skipped(&self) -> u64 {
        self.resolver.skipped()
    }

    /// Returns the count of the watches that read the directory now.
    pub(crate) fn polls(&self) -> Arc<AtomicUsize> {
        Arc::clone(&self.resolver.source().open)
    }
}

#[async_trait]
impl Resolver for Directory {
    async fn list(&self, service: &ServiceName) -> Result<Snapshot, Error> {
        self.resolver.list(service).await
    }

    fn watch(&self, service: &ServiceName) -> Result<UpdateStream, Error> {
        self.resolver.watch(service)
    }
}

#[async_trait]
impl Registry for Directory {
    async fn register_with(
        &self,
        service: &ServiceName,
        instance: Instance,
        claim: Claim,
    ) -> Result<Registration, Error> {
        let instance = Arc::new(instance);
        let file =
            Own { path: self.files.path(service, &instance), files: self.files.clone(), token: fastrand::u64(..) };
        // No await between the write and the task that owns it, so that a drop cannot separate
        // them.
        file.write(&instance, claim).map_err(|error| error.with_operation("register").with_service(service))?;
        let status = StatusWriter::new(Status::registered());
        let (asks, asked) = mpsc::unbounded_channel();
        let task = tokio::spawn(own(file, Arc::clone(&instance), status.clone(), asked));
        let mut owners = self.owners.lock().unwrap_or_else(PoisonError::into_inner);
        owners.retain(|owner| !owner.is_finished());
        owners.push(task.abort_handle());
        Ok(Registration::new(service.clone(), instance, &status, Asks(asks)))
    }
}

/// The task of one registration: keeps the file until its end is requested, or its handle is gone.
async fn own(file: Own, mut instance: Arc<Instance>, status: StatusWriter, mut asked: mpsc::UnboundedReceiver<Ask>) {
    loop {
        let ask = tokio::select! {
            ask = asked.recv() => Some(ask),
            // A superseded owner must not return, not even once the file of the next one is old.
            () = sleep(file.files.ttl / 10), if !matches!(status.current(), Status::Superseded { .. }) => None,
        };
        let kept = match &ask {
            Some(Some(Ask::Update(..))) if matches!(status.current(), Status::Superseded { .. }) => {
                Err(Error::new(ErrorKind::Conflict, "another owner took the id over"))
            }
            Some(Some(Ask::Update(next, _))) => {
                instance = Arc::clone(next);
                if file.is_mine() { file.write(&instance, Claim::TakeOver) } else { file.keep(&instance) }
            }
            Some(Some(Ask::End(_)) | None) => file.remove(),
            None => file.keep(&instance),
        };
        let next = match &kept {
            Err(error) if error.kind() == ErrorKind::Conflict => Status::superseded(),
            Err(error) => Status::lost(error.clone()),
            Ok(()) if matches!(ask, Some(Some(Ask::End(_)) | None)) => Status::deregistered(),
            Ok(()) => Status::registered(),
        };
        if !(next.is_registered() && status.current().is_registered()) {
            status.set(next);
        }
        match ask {
            // The caller may have been dropped.
            Some(Some(Ask::Update(_, answer))) => drop(answer.send(kept)),
            Some(Some(Ask::End(answer))) => return drop(answer.send(kept)),
            Some(None) => return,
            None => {}
        }
    }
}

#[derive(Debug)]
enum Ask {
    End(oneshot::Sender<Result<(), Error>>),
    Update(Arc<Instance>, oneshot::Sender<Result<(), Error>>),
}

/// A registration's handle: dropping it makes the task remove the file.
#[derive(Debug)]
struct Asks(mpsc::UnboundedSender<Ask>);

impl Asks {
    async fn ask(&self, ask: impl FnOnce(oneshot::Sender<Result<(), Error>>) -> Ask) -> Result<(), Error> {
        let (sender, answer) = oneshot::channel();
        // If the task is gone, the answer channel is closed too.
        let _ = self.0.send(ask(sender));
        answer.await.unwrap_or_else(|_| Err(Error::new(ErrorKind::Closed, "the backend is gone")))
    }
}

#[async_trait]
impl RegistrationBackend for Asks {
    async fn update(&self, instance: Arc<Instance>) -> Result<(), Error> {
        self.ask(|answer| Ask::Update(instance, answer)).await
    }

    async fn deregister(&self) -> Result<(), Error> {
        self.ask(Ask::End).await
    }

    fn release(&self) {
        // The sender is dropped next, and that is the request.
    }
}

/// The reading half: the whole state at an interval.
#[derive(Debug)]
struct Polled {
    files: Files,
    open: Arc<AtomicUsize>,
}

#[async_trait]
impl Source for Polled {
    async fn follow(&self, service: &ServiceName, feed: Feed) -> Result<(), Error> {
        self.open.fetch_add(1, Ordering::Relaxed);
        let _open = Open(&self.open);
        let mut live = feed.reset(self.files.read(service)?);
        loop {
            sleep(POLL).await;
            live.replace(self.files.read(service)?);
        }
    }
}

struct Open<'a>(&'a AtomicUsize);

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[derive(Clone, Debug)]
struct Files {
    root: PathBuf,
    ttl: Duration,
}

impl Files {
    fn path(&self, service: &ServiceName, instance: &Instance) -> PathBuf {
        self.root.join(SERVICES).join(service.as_str()).join(instance.id().as_str())
    }

    fn read(&self, service: &ServiceName) -> Result<Vec<Entry>, Error> {
        // The root shows whether the registry is reachable; a service that was never registered has
        // no directory.
        let services = self.root.join(SERVICES);
        fs::metadata(&services).map_err(failed)?;
        let Some(listing) = found(fs::read_dir(services.join(service.as_str())))? else { return Ok(Vec::new()) };
        let mut entries = Vec::new();
        for file in listing {
            let path = file.map_err(failed)?.path();
            if path.is_file() && self.is_alive(&path) {
                entries.extend(found(fs::read(&path))?.map(|bytes| entry(&path, &bytes)));
            }
        }
        Ok(entries)
    }

    fn is_alive(&self, path: &Path) -> bool {
        let touched = fs::metadata(path).and_then(|file| file.modified());
        touched.is_ok_and(|touched| touched.elapsed().map_or(true, |age| age < self.ttl))
    }
}

/// A file as its owner sees it.
#[derive(Debug)]
struct Own {
    files: Files,
    path: PathBuf,
    token: u64,
}

impl Own {
    fn is_mine(&self) -> bool {
        self.owner() == Some(self.token)
    }

    /// The token of the file's owner, if there is a file.
    fn owner(&self) -> Option<u64> {
        fs::read_to_string(&self.path).ok()?.lines().next()?.parse().ok()
    }

    /// Tells the owner of the file that it is superseded, unless it is this one.
    fn leave_note(&self) -> io::Result<()> {
        let former = self.owner().filter(|owner| *owner != self.token);
        former.map_or(Ok(()), |former| fs::write(self.note_for(former), ""))
    }

    /// Where an owner finds out that it was superseded.
    fn note_for(&self, token: u64) -> PathBuf {
        self.files.root.join(SUPERSEDED).join(token.to_string())
    }

    fn write(&self, instance: &Instance, claim: Claim) -> Result<(), Error> {
        let temporary = self.files.root.join(TEMPORARY).join(self.token.to_string());
        let json = serde_json::to_string(instance).map_err(io::Error::from).map_err(failed)?;
        let directory = self.path.parent().expect("an instance's path has its service's directory");
        if claim == Claim::IfAbsent && !self.files.is_alive(&self.path) {
            self.leave_note().map_err(failed)?;
            found(fs::remove_file(&self.path))?;
        }
        fs::metadata(self.files.root.join(SERVICES)).map_err(failed)?;
        fs::create_dir_all(directory).map_err(failed)?;
        fs::write(&temporary, format!("{}\n{json}", self.token)).map_err(failed)?;
        let placed = match claim {
            Claim::IfAbsent => fs::hard_link(&temporary, &self.path).and_then(|()| fs::remove_file(&temporary)),
            _ => self.leave_note().and_then(|()| fs::rename(&temporary, &self.path)),
        };
        placed.map_err(|error| {
            // The rename may have succeeded already.
            let _ = fs::remove_file(&temporary);
            failed(error)
        })
    }

    /// Renews the file, or restores it; leaves another owner's file alone.
    #[expect(clippy::disallowed_methods, reason = "file times are those of the system clock")]
    fn keep(&self, instance: &Instance) -> Result<(), Error> {
        match self.is_mine() {
            true => File::open(&self.path).and_then(|file| file.set_modified(SystemTime::now())).map_err(failed),
            false if self.note_for(self.token).exists() => {
                Err(Error::new(ErrorKind::Conflict, "another owner took the id over"))
            }
            false => self.write(instance, Claim::IfAbsent),
        }
    }

    /// Removes the file if it belongs to this owner.
    fn remove(&self) -> Result<(), Error> {
        fs::metadata(self.files.root.join(SERVICES)).map_err(failed)?;
        if self.is_mine() {
            found(fs::remove_file(&self.path))?;
        }
        found(fs::remove_file(self.note_for(self.token))).map(|_| ())
    }
}

fn entry(path: &Path, bytes: &[u8]) -> Entry {
    let id = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse().ok());
    let json = bytes.splitn(2, |byte| *byte == b'\n').nth(1).unwrap_or_default();
    let error = match serde_json::from_slice::<Instance>(json) {
        Ok(instance) if Some(instance.id()) == id.as_ref() => return Entry::Valid(instance),
        Ok(_) => Error::new(ErrorKind::InvalidInput, "the file's name is not the instance's id"),
        Err(error) => Error::new(ErrorKind::InvalidInput, "the file holds no instance").with_source(error),
    };
    let mut hash = DefaultHasher::new();
    bytes.hash(&mut hash);
    Entry::Bad(BadEntry { key: path.display().to_string(), id, revision: hash.finish(), error })
}

/// Returns `None` if the file or directory does not exist.
fn found<T>(result: io::Result<T>) -> Result<Option<T>, Error> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        result => result.map(Some).map_err(failed),
    }
}

fn failed(error: io::Error) -> Error {
    let kind = match error.kind() {
        io::ErrorKind::AlreadyExists => ErrorKind::Conflict,
        io::ErrorKind::PermissionDenied => ErrorKind::PermissionDenied,
        _ => ErrorKind::Unavailable,
    };
    Error::new(kind, "a file operation failed").with_source(error)
}

const SERVICES: &str = "services";
const SUPERSEDED: &str = "superseded";
const TEMPORARY: &str = "temporary";
const POLL: Duration = Duration::from_millis(20);
