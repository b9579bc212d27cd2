//! Keeping the state of a home: check, save, put back.

use std::path::PathBuf;

use clap::Args;

/// Check everything that Muster keeps against everything else
///
/// Reads the journal, snapshots, archive and task documents, hosted repositories, transcripts and
/// workers' disks, and says where they do not agree: what, where, and what to do. Changes nothing;
/// `coordinator doctor --repair` mends what can be mended.
///
/// Works while no coordinator runs on the home, and keeps any from starting meanwhile. Beside one
/// that runs, only what several looks have found counts, since the world goes on between them.
///
/// The exit code is 1 if anything is wrong. Notes do not count.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  coordinator audit
  coordinator audit --worker-state /scratch/muster-42/worker
  coordinator audit --json | jq -s '.[-1]'     what was checked and found")]
pub(crate) struct Audit {
    /// State folder of workers; may be given several times [default: those in the home]
    #[arg(long, value_name = "DIR")]
    pub(crate) worker_state: Vec<PathBuf>,
    /// Say only what is about this run
    #[arg(long, value_name = "RUN")]
    pub(crate) run: Option<String>,
    /// See only whether git's objects are there, not whether each is sound
    #[arg(long)]
    pub(crate) quick: bool,
    /// Print one JSON object for each finding, and one for the whole
    #[arg(long)]
    pub(crate) json: bool,
}

/// Check that this machine is ready, and say what to do where it is not
///
/// The exit code is 1 if a check fails; warnings do not count.
///
/// With `--repair` it mends what `coordinator audit` has found in the home and can be mended, and
/// says each thing that it did. No coordinator may run on the home. Nothing is deleted but halves of
/// copies that a killed backup or restore has left beside the home: what is in the way moves to
/// `repaired/` in the home, and commits that lose their ref get one under `refs/muster/lost/`.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  coordinator doctor
  coordinator doctor --json | jq '.checks[]'
  coordinator doctor --repair      mend what `coordinator audit` has found")]
pub(crate) struct Doctor {
    /// Mend the state of the home
    #[arg(long)]
    pub(crate) repair: bool,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Save the home's state, also while its coordinator runs
///
/// The backup is a folder with everything that cannot be made again: journal and archive, plans,
/// transcripts, hosted repositories, certificate authority, tokens and configuration. It is read
/// back as a whole before it gets its name. It holds secrets and is readable by its owner alone.
///
/// Logs and the folders of local workers are not in it.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  coordinator backup /backup/muster-$(date +%F)
  coordinator restore /backup/muster-2026-11-21 --home ~/muster-restored")]
pub(crate) struct Backup {
    /// Folder to make; must not exist, or be empty
    #[arg(value_name = "DEST")]
    pub(crate) destination: PathBuf,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}

/// Put a backup back as a new home
///
/// The home (`--home`) must not exist, or be empty. Every checksum is compared before anything is
/// written. `serve` then goes on from the moment of the backup: what was accepted after it is done
/// again, workers that still hold leases from after it are told to stop and keep their edits, and
/// tokens revoked after it are valid again. Output from after it comes again from workers that still
/// hold its lease; other output from after it is lost.
///
/// The new home's pools have nothing: what the saved one's have started, and may still use, is neither
/// listed nor ended, and its workers cannot join. With `--take-over` the new home takes the place of
/// the saved one: jobs that the backup knows go on, and those started after it are ended.
#[derive(Debug, Args)]
#[command(after_long_help = "\
Examples:
  coordinator restore /backup/muster-2026-11-21 --home ~/muster-restored
  coordinator restore /backup/muster-2026-11-21 --take-over
  coordinator serve --home ~/muster-restored")]
pub(crate) struct Restore {
    /// Folder that `backup` made
    #[arg(value_name = "FROM")]
    pub(crate) from: PathBuf,
    /// Go on with the pools' allocations: the saved home is gone for good, and no coordinator runs on it
    #[arg(long)]
    pub(crate) take_over: bool,
    /// Print JSON
    #[arg(long)]
    pub(crate) json: bool,
}
