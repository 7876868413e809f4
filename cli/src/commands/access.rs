//! `meepo login`, `logout`, `whoami`, `user`, `token`, `role`.

use super::{
    apply::action,
    documents::{self, Document},
};
use crate::{
    args::{LoginArgs, RoleCommand, TokenCommand, UserCommand},
    client::Client,
    credentials::{self, Entry},
    error::{CliError, CliResult, exit},
    output::{
        Out,
        table::{Table, cell, maybe},
        text, time,
    },
};
use meepo_core::{
    api::Applied,
    auth::{
        CreateToken, GrantSpec, LoginRequest, NewToken, PasswordRequest, PutUser, Role, RoleList,
        TokenList, TokenText, TokenView, UserList, UserView, WhoAmI,
    },
    id::Name,
};
use reqwest::Method;
use std::io::{self, BufRead, IsTerminal};

/// Widest column of grants, in characters.
const GRANTS_WIDTH: usize = 100;

/// `meepo login`.
pub(crate) async fn login(out: &Out, client: Client, args: LoginArgs) -> CliResult<u8> {
    let base = client.base().clone();
    if !credentials::is_private(&base) {
        let problem = "what is sent there is not encrypted";
        return Err(CliError::usage("--master", problem, "https://, or a master on this host"));
    }
    let (token, user) = if args.token_stdin {
        let token = line_of_stdin()?;
        token
            .parse::<TokenText>()
            .map_err(|_| CliError::usage("--token-stdin", "not a token", "meepo_<id>_<secret>"))?;
        let who: WhoAmI = client.with_token(Some(token.clone())).get(&["whoami"], &[]).await?;
        (token, who.user)
    } else {
        let user = match args.user {
            Some(user) => user,
            None => shell_user()?,
        };
        let password = match args.password_stdin {
            true => line_of_stdin()?,
            false => ask(&format!("Password of {user}: "))?,
        };
        let request = LoginRequest { user, password, ttl: args.ttl };
        // What is kept may be worth nothing any more.
        let client = client.with_token(None);
        let new: NewToken = client.call(Method::POST, &["login"], &[], Some(&request)).await?;
        (new.token, new.user.to_string())
    };
    let path = credentials::keep(&base, Entry { user: user.clone(), token })?;
    out.note(&format!("logged in as {user}; the token is kept in {}", path.display()));
    Ok(exit::OK)
}

/// `meepo logout`.
pub(crate) async fn logout(out: &Out, client: &Client) -> CliResult<u8> {
    let revoked: CliResult<Applied> =
        client.call(Method::POST, &["logout"], &[], None::<&()>).await;
    let there = credentials::forget(client.base())?;
    match revoked {
        Ok(_) => {}
        // What is worth nothing any more need not be revoked.
        Err(e) if there && e.exit == exit::DENIED => {}
        Err(e) if there => {
            return Err(CliError::new(
                e.exit,
                format!("forgotten here, but not revoked: {}", e.problem),
            ));
        }
        Err(e) => return Err(e),
    }
    out.note("logged out: the token is revoked");
    Ok(exit::OK)
}

/// `meepo whoami`.
pub(crate) async fn whoami(out: &Out, client: &Client) -> CliResult<u8> {
    let who: WhoAmI = client.get(&["whoami"], &[]).await?;
    out.value(&who, |_| {
        if !who.auth {
            return "anonymous: this master asks nobody who they are\n".to_owned();
        }
        let roles: Vec<&str> = who.roles.iter().map(Name::as_str).collect();
        let mut text = format!("{} (by {})\n", text::one_line(&who.user), who.via.as_str());
        text += &format!(
            "roles:       {}\n",
            if roles.is_empty() { "-".into() } else { roles.join(", ") }
        );
        text += &format!("permissions: {}\n", who.permissions.join(", "));
        if let Some(at) = who.expires_at {
            text += &format!("until:       {}\n", time::local(at));
        }
        text
    })?;
    Ok(exit::OK)
}

/// `meepo user …`.
pub(crate) async fn user(out: &Out, client: &Client, command: UserCommand) -> CliResult<u8> {
    match command {
        UserCommand::Put { name, roles, description, disabled } => {
            let user = PutUser { description, roles, disabled };
            let path = ["users", name.as_str()];
            let applied: Applied = client.call(Method::PUT, &path, &[], Some(&user)).await?;
            out.value(&applied, |_| format!("user {name} {}\n", action(applied.action)))?;
        }
        UserCommand::List => {
            let list: UserList = client.get(&["users"], &[]).await?;
            out.value(&list.users, |out| users(out, &list.users))?;
        }
        UserCommand::Delete { names } => delete(out, client, "user", &texts(&names)).await?,
        UserCommand::Passwd { name, password_stdin, remove } => {
            passwd(out, client, name, password_stdin, remove).await?;
        }
    }
    Ok(exit::OK)
}

async fn passwd(
    out: &Out,
    client: &Client,
    name: Option<Name>,
    stdin: bool,
    remove: bool,
) -> CliResult<()> {
    let who: WhoAmI = client.get(&["whoami"], &[]).await?;
    let name = match name {
        Some(name) => name,
        None => Name::new(&who.user)?,
    };
    let own = who.user == name.as_str() && !who.permissions.iter().any(|p| p == "user.write");
    let mut request = PasswordRequest { password: None, old: None };
    if stdin {
        request.password = Some(line_of_stdin()?);
        if own {
            request.old = Some(line_of_stdin()?);
        }
    } else {
        if own {
            request.old = Some(ask("Old password: ")?);
        }
        if !remove {
            let new = ask(&format!("New password of {name}: "))?;
            if ask("Again: ")? != new {
                return Err(CliError::usage("password", "not the same twice", "the same"));
            }
            request.password = Some(new);
        }
    }
    let path = ["users", name.as_str(), "password"];
    let applied: Applied = client.call(Method::PUT, &path, &[], Some(&request)).await?;
    let done = if request.password.is_some() { "set" } else { "removed" };
    out.value(&applied, |_| format!("password of {name} {done}\n"))
}

/// `meepo token …`.
pub(crate) async fn token(out: &Out, client: &Client, command: TokenCommand) -> CliResult<u8> {
    match command {
        TokenCommand::Create { user, description, roles, from, ttl } => {
            let request = CreateToken {
                user,
                description,
                roles: (!roles.is_empty()).then_some(roles),
                from: (!from.is_empty()).then_some(from),
                ttl,
            };
            let new: NewToken = client.call(Method::POST, &["tokens"], &[], Some(&request)).await?;
            out.value(&new, |_| format!("{}\n", new.token))?;
            if out.is_table() {
                let until = time::local(new.expires_at);
                out.note(&format!(
                    "token {} of {}, until {until}; it is shown this once",
                    new.id, new.user
                ));
            }
        }
        TokenCommand::List => {
            let list: TokenList = client.get(&["tokens"], &[]).await?;
            out.value(&list.tokens, |out| tokens(out, &list.tokens))?;
        }
        TokenCommand::Revoke { ids } => delete(out, client, "token", &ids).await?,
    }
    Ok(exit::OK)
}

/// `meepo role …`.
pub(crate) async fn role(out: &Out, client: &Client, command: RoleCommand) -> CliResult<u8> {
    match command {
        RoleCommand::Put { files } => {
            let (documents, mut errors) = documents::load(&files);
            let mut valid = Vec::new();
            for Document { place, value } in documents {
                match Role::from_user(value) {
                    Ok(role) => valid.push((place, role)),
                    Err(e) => errors.push(CliError::from(e).at(place)),
                }
            }
            if !errors.is_empty() {
                errors.iter().skip(1).for_each(|e| out.note(&format!("error: {e}")));
                return Err(errors.remove(0));
            }
            let mut done = Vec::new();
            for (place, role) in valid {
                let path = ["roles", role.name.as_str()];
                let applied: CliResult<Applied> =
                    client.call(Method::PUT, &path, &[], Some(&role)).await;
                done.push(applied.map_err(|e| e.at(place))?);
            }
            out.value(&done, |_| {
                done.iter().map(|a| format!("role {} {}\n", a.name, action(a.action))).collect()
            })?;
        }
        RoleCommand::List => {
            let list: RoleList = client.get(&["roles"], &[]).await?;
            out.value(&list.roles, |out| roles(out, &list.roles))?;
        }
        RoleCommand::Delete { names } => delete(out, client, "role", &texts(&names)).await?,
    }
    Ok(exit::OK)
}

async fn delete(out: &Out, client: &Client, what: &str, names: &[String]) -> CliResult<()> {
    let (plural, done) = (format!("{what}s"), if what == "token" { "revoked" } else { "deleted" });
    let mut all = Vec::new();
    for name in names {
        let path = [plural.as_str(), name.as_str()];
        let applied: Applied = client.call(Method::DELETE, &path, &[], None::<&()>).await?;
        if out.is_table() {
            out.text(&format!("{what} {} {done}\n", applied.name))?;
        }
        all.push(applied);
    }
    if out.is_table() { Ok(()) } else { out.value(&all, |_| String::new()) }
}

fn texts(names: &[Name]) -> Vec<String> {
    names.iter().map(ToString::to_string).collect()
}

fn joined(names: &[Name]) -> Option<String> {
    (!names.is_empty()).then(|| texts(names).join(", "))
}

fn users(out: &Out, users: &[UserView]) -> String {
    let mut table = Table::new(out, &["USER", "ROLES", "PASSWORD", "STATE", "DESCRIPTION"]);
    for u in users {
        table.row(vec![
            cell(u.name.as_str()),
            maybe(joined(&u.roles)),
            cell(if u.password { "set" } else { "-" }),
            cell(if u.disabled { "disabled" } else { "enabled" }),
            maybe(u.description.as_ref()),
        ]);
    }
    table.render()
}

fn tokens(out: &Out, tokens: &[TokenView]) -> String {
    let header = ["TOKEN", "USER", "ROLES", "FROM", "CREATED", "BY", "UNTIL", "DESCRIPTION"];
    let mut table = Table::new(out, &header);
    for t in tokens {
        let from = t.from.as_ref();
        let from = from.map(|f| f.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "));
        table.row(vec![
            cell(&t.id),
            cell(t.user.as_str()),
            cell(t.roles.as_deref().map_or_else(|| "all".to_owned(), |r| texts(r).join(", "))),
            cell(from.unwrap_or_else(|| "anywhere".to_owned())),
            cell(time::local(t.created_at)),
            cell(&t.created_by),
            cell(time::local(t.expires_at)),
            maybe(t.description.as_ref()),
        ]);
    }
    table.render()
}

fn roles(out: &Out, roles: &[Role]) -> String {
    let mut table = Table::new(out, &["ROLE", "ALLOWS"]);
    for role in roles {
        for (i, grant) in role.grants.iter().enumerate() {
            let name = if i == 0 { role.name.as_str() } else { "" };
            table.row(vec![cell(name), cell(text::shorten(&in_words(grant), GRANTS_WIDTH))]);
        }
    }
    table.render()
}

/// `exec, job.read on group=web; commands: uptime; as www; from 10.0.0.0/8`.
fn in_words(grant: &GrantSpec) -> String {
    let mut text = grant.permissions.join(", ");
    if let Some(target) = &grant.target {
        text += &format!(" on {target}");
    }
    if let Some(commands) = &grant.commands {
        text += &format!("; commands: {}", commands.join(" | "));
    }
    if let Some(users) = &grant.users {
        text += &format!("; as {}", users.join(", "));
    }
    if let Some(from) = &grant.from {
        let from: Vec<String> = from.iter().map(ToString::to_string).collect();
        text += &format!("; from {}", from.join(", "));
    }
    text
}

/// A secret that is typed; nothing is shown.
fn ask(prompt: &str) -> CliResult<String> {
    if !io::stdin().is_terminal() {
        let expected = "a terminal, or --password-stdin";
        return Err(CliError::usage("password", "nobody can be asked for it here", expected));
    }
    Ok(rpassword::prompt_password(prompt)?)
}

fn line_of_stdin() -> CliResult<String> {
    let mut line = String::new();
    io::stdin().lock().read_line(&mut line)?;
    let line = line.trim_end_matches(['\n', '\r']).to_owned();
    if line.is_empty() {
        return Err(CliError::usage("standard input", "nothing there", "a line with the secret"));
    }
    Ok(line)
}

fn shell_user() -> CliResult<Name> {
    let named = ["USER", "LOGNAME"].into_iter().find_map(|v| std::env::var(v).ok());
    let missing = || CliError::usage("--user", "missing, and USER is not set", "the user's name");
    Ok(Name::new(&named.ok_or_else(missing)?)?)
}
