//! The domain logic of meepo, free of effects: no network, no files, no ambient
//! clock and no ambient randomness. Whatever needs "now" or an id is given it.
//!
//! | module | what it holds |
//! |---|---|
//! | [`id`] | names of jobs and nodes, run ids |
//! | [`code`] | the 16-bit code of every outcome |
//! | [`error`] | [`error::Invalid`]: what is wrong, where, and what would be right |
//! | [`digest`] | one number for everything a node holds |
//! | [`doctor`] | what is wrong, in words, with what to do about it |
//! | [`duration`] | durations as people write them (`30s`, `5m`) |
//! | [`input`] | documents from people: errors that name the field |
//! | [`calendar`] | cron expressions and the instants they name |
//! | [`crontab`] | crontab files and how they become jobs |
//! | [`target`] | which nodes are meant |
//! | [`job`] | job definitions and their copies on nodes |
//! | [`labels`] | labels of nodes, and who set them |
//! | [`limits`] | what a run may use of its host |
//! | [`kill_plan`] | how a run is ended |
//! | [`lock`] | locks in the cluster that runs need |
//! | [`retry`] | whether and when a run is tried again |
//! | [`misfire`] | slots that are due, and those that were missed |
//! | [`rollout`] | in which portions parts of a task begin: `(policy, parts, now) -> plan` |
//! | [`run`] | executions, their states and their output |
//! | [`node`] | what a node says of itself |
//! | [`task`] | work done once: its states, and who gets what next |
//! | [`placement`] | which node holds which job: `(fleet, what changed) -> effects` |
//! | [`secret`] | references to secrets in jobs, and output without their values |
//! | [`shown`] | text from elsewhere, made safe for whatever shows it |
//! | [`signing`] | what masters sign and workers check: bytes, expiry, which is newer |
//! | [`policy`] | what a node runs, whatever masters say |
//! | [`tree`] | the product tree: what a node inherits of a job's definitions |
//! | [`event`] | what is told to those who listen |
//! | [`mismatch`] | where workers and records differ, and what is done about it |
//! | [`audit`] | who did what, when, from where and with what result |
//! | [`auth`] | who may do what, where and from where |
//! | [`breaker`] | when to leave alone what does not answer |
//! | [`api`] | what the HTTP API takes and answers |

pub mod api;
pub mod audit;
pub mod auth;
pub mod breaker;
pub mod calendar;
pub mod code;
pub mod crontab;
pub mod digest;
pub mod doctor;
pub mod duration;
pub mod error;
pub mod event;
pub mod history;
pub mod http_job;
pub mod id;
pub mod input;
pub mod job;
pub mod join;
pub mod kill_plan;
pub mod labels;
pub mod limits;
pub mod lock;
pub mod misfire;
pub mod mismatch;
pub mod node;
pub mod notify;
pub mod placement;
pub mod policy;
pub mod retry;
pub mod rollout;
pub mod run;
pub mod secret;
pub mod shown;
pub mod signing;
pub mod target;
pub mod task;
pub mod tree;
