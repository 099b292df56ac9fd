// SPDX-License-Identifier: GPL-2.0

//! A mutex that is a static of the module.
//!
//! `kernel::sync::global_lock` needs unsafe code where it is used, for its initialization. This
//! macro contains that code.

/// Defines a static mutex and the function that initializes it, which the module's initialization
/// calls before anything else.
macro_rules! global_mutex {
    (static $name:ident: Mutex<$type:ty> = $value:expr, initialized by $init:ident;) => {
        kernel::sync::global_lock! {
            // SAFETY: `$init` is called first of all when the module is loaded.
            unsafe(uninit) static $name: Mutex<$type> = $value;
        }

        /// Initializes the static. Only the module's initialization has the reference to the
        /// module, so this is called once.
        pub(crate) fn $init(_module: &'static kernel::ThisModule) {
            // SAFETY: The module is initialized once.
            unsafe { $name.init() };
        }
    };
}
pub(crate) use global_mutex;
