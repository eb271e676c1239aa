//! What files hold: the bytes that readers of formats pull from.

mod input;

pub use input::Input;
