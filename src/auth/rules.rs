//! Which identity may read which class of content. Every decision about reading is taken here.

use super::{AccessClass, Identity};

/// Whether `identity` may read content of `class`: everybody reads what is public, every user reads the rest.
pub fn may_read(identity: &Identity, class: AccessClass) -> bool {
    match class {
        AccessClass::Public => true,
        AccessClass::Private | AccessClass::Unproven => identity.user.is_some(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_public_needs_a_user() {
        let anonymous = Identity::anonymous([127, 0, 0, 1].into());
        let user = Identity { user: Some("board".into()), ..anonymous.clone() };
        for (class, open) in
            [(AccessClass::Public, true), (AccessClass::Private, false), (AccessClass::Unproven, false)]
        {
            assert_eq!((may_read(&anonymous, class), may_read(&user, class)), (open, true), "{class:?}");
        }
    }
}
