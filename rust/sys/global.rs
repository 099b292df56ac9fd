// SPDX-License-Identifier: GPL-2.0

//! A mutex that is a static of the module.
//!
//! `kernel::sync::global_lock` needs unsafe code where it is used, for its initialization; this puts
//! it here.

/// Defines a static mutex, and a function that makes it ready, for the module's initialization to
/// call before anything else.
macro_rules! global_mutex {
    (static $name:ident: Mutex<$type:ty> = $value:expr, initialized by $init:ident;) => {
        kernel::sync::global_lock! {
            // SAFETY: `$init` is called first of all when the module is loaded.
            unsafe(uninit) static $name: Mutex<$type> = $value;
        }

        /// Makes the static ready. The reference to the module, which only its initialization has,
        /// says that this is called once.
        pub(crate) fn $init(_module: &'static kernel::ThisModule) {
            // SAFETY: The module is initialized once.
            unsafe { $name.init() };
        }
    };
}
pub(crate) use global_mutex;
