//! What is exchanged with the service manager: state, watchdog, inherited sockets.
//!
//! [`Notify`] is the way to the service manager, [`Pulse`] decides whether the watchdog is notified, and
//! [`inherited_listeners`] are the sockets of a socket unit. Without a service manager all of them do nothing.
//!
//! Failure. Nothing here ends the server but an inherited socket that is none: a service manager that cannot be
//! reached takes its own measures.

mod inherited;
mod notify;
mod pulse;

pub use inherited::inherited_listeners;
pub use notify::Notify;
pub use pulse::Pulse;
