//! What others are told of how larder is doing, and what they hand over: so far that is systemd.
//!
//! [`Notify`] is the way to the service manager, [`Pulse`] decides whether there is life to tell of, and
//! [`inherited_listeners`] are the sockets of a socket unit. Without a service manager all of them do nothing.
//!
//! Failure. Nothing here ends the server but an inherited socket that is none: a service manager that cannot be told
//! anything takes its own measures.

mod inherited;
mod notify;
mod pulse;

pub use inherited::inherited_listeners;
pub use notify::Notify;
pub use pulse::Pulse;
