//! Who may do what: users, tokens and roles, and the decisions. Who somebody is, masters find
//! out; here nothing is asked but what is handed in.
//!
//! A role is a list of grants. A grant allows its permissions where all of its limits hold:
//! the node, the command and its user, the address of who asks. Somebody may do what one grant
//! of one of the roles allows, and nothing else.

mod access;
mod bucket;
mod command;
mod permission;
mod range;
mod records;
mod role;
#[cfg(test)]
mod tests;
mod views;

pub use access::{Access, Grant, grants};
pub use bucket::{Bucket, Rate};
pub use command::Command;
pub use permission::{Permission, Scope, meant};
pub use range::Range;
pub use records::{MAX_PASSWORD, MIN_PASSWORD, Token, TokenText, User, check_password};
pub use role::{ADMIN, BUILT_IN, GrantSpec, OPERATOR, Role, VIEWER};
pub use views::{
    CreateToken, LoginRequest, NewToken, PasswordRequest, PutUser, RoleList, TokenList, TokenView,
    UserList, UserView, Via, WhoAmI,
};
