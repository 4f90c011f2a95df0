//! Which identity may read which class of content. Every decision about reading is taken here.

use super::{AccessClass, Identity};

/// Whether `identity` may read content of `class`: everybody reads what is public, every user reads what is private. What is
/// of unknown origin is for this machine, whoever asks from it: the address is that of the connection, whatever a header says.
pub fn may_read(identity: &Identity, class: AccessClass) -> bool {
    match class {
        AccessClass::Public => true,
        AccessClass::Private => identity.user.is_some(),
        AccessClass::Unproven => identity.address.to_canonical().is_loopback(),
    }
}

/// What may be read besides what is public.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Clearance {
    /// What was fetched with credentials.
    pub private: bool,
    /// What is of unknown origin.
    pub unproven: bool,
}

impl Clearance {
    /// Everybody's.
    pub const NONE: Clearance = Clearance { private: false, unproven: false };
    /// The owner's.
    pub const FULL: Clearance = Clearance { private: true, unproven: true };

    /// Whether content of `class` may be read.
    pub fn covers(self, class: AccessClass) -> bool {
        match class {
            AccessClass::Public => true,
            AccessClass::Private => self.private,
            AccessClass::Unproven => self.unproven,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_private_needs_a_user_and_what_is_unproven_this_machine() {
        let of = |address: &str, user: Option<&str>| Identity {
            user: user.map(str::to_owned),
            ..Identity::anonymous(address.parse().unwrap())
        };
        for (address, near) in [
            ("127.0.0.1", true),
            ("::1", true),
            ("::ffff:127.0.0.1", true),
            ("10.0.0.7", false),
            ("fe80::1", false),
        ] {
            for user in [None, Some("board")] {
                let who = of(address, user);
                let open = [AccessClass::Public, AccessClass::Private, AccessClass::Unproven]
                    .map(|class| may_read(&who, class));
                assert_eq!(open, [true, user.is_some(), near], "{who:?}");
            }
        }
    }

    #[test]
    fn a_clearance_covers_what_it_names() {
        let classes = [AccessClass::Public, AccessClass::Private, AccessClass::Unproven];
        assert_eq!(classes.map(|class| Clearance::NONE.covers(class)), [true, false, false]);
        assert_eq!(classes.map(|class| Clearance::FULL.covers(class)), [true; 3]);
        let near = Clearance { unproven: true, ..Clearance::NONE };
        assert_eq!(classes.map(|class| near.covers(class)), [true, false, true]);
    }
}
