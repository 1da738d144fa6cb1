//! Connection strings: libpq's two forms, a URL and `key=value` words, as parameters in their order.
//!
//! What the parameters mean is for [`super::target`] to say. No message quotes a value: it may be a password.

use crate::config::percent_decoded;

/// A parameter: its name and its value.
pub(super) type Parameter = (String, String);

/// Reads either form. A parameter that comes twice counts as it came last, as in libpq.
pub(super) fn parameters(text: &str) -> Result<Vec<Parameter>, String> {
    match ["postgres://", "postgresql://"].iter().find_map(|scheme| text.strip_prefix(scheme)) {
        Some(rest) => url(rest),
        None => words(text),
    }
}

/// `[user[:password]@][host[:port]][,...][/dbname][?name=value[&...]]`
fn url(rest: &str) -> Result<Vec<Parameter>, String> {
    let mut found = Vec::new();
    let mut put = |name: &str, value: String| found.push((name.to_owned(), value));
    // libpq looks for the end of the credentials up to the first slash.
    let before_path = rest.find('/').unwrap_or(rest.len());
    let (credentials, rest) = match rest[..before_path].find('@') {
        Some(at) => (Some(&rest[..at]), &rest[at + 1..]),
        None => (None, rest),
    };
    if let Some(credentials) = credentials {
        let (user, password) =
            credentials.split_once(':').map_or((credentials, None), |(user, rest)| (user, Some(rest)));
        put("user", decoded("the user", user)?);
        if let Some(password) = password {
            put("password", decoded("the password", password)?);
        }
    }
    let (place, query) = rest.split_once('?').map_or((rest, None), |(place, query)| (place, Some(query)));
    let (hosts, dbname) = place.split_once('/').map_or((place, ""), |(hosts, dbname)| (hosts, dbname));
    if !hosts.is_empty() {
        let hosts: Vec<_> = hosts.split(',').map(host).collect::<Result<_, _>>()?;
        let list = |of: fn(&(String, String)) -> &str| hosts.iter().map(of).collect::<Vec<_>>().join(",");
        put("host", list(|(host, _)| host));
        if hosts.iter().any(|(_, port)| !port.is_empty()) {
            put("port", list(|(_, port)| port));
        }
    }
    if !dbname.is_empty() {
        put("dbname", decoded("the database", dbname)?);
    }
    for field in query.unwrap_or_default().split('&').filter(|field| !field.is_empty()) {
        let (name, value) = field.split_once('=').ok_or("a parameter after the ? has no =")?;
        let name = decoded("the name of a parameter", name)?;
        let value = decoded(&name, value)?;
        match (name.as_str(), value.as_str()) {
            // As JDBC writes it, and libpq takes it.
            ("ssl", "true") => put("sslmode", "require".to_owned()),
            _ => put(&name, value),
        }
    }
    Ok(found)
}

/// A host and its port, each perhaps empty.
fn host(text: &str) -> Result<(String, String), String> {
    let (name, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (name, rest) = rest.split_once(']').ok_or("an IPv6 address has no ] at its end")?;
            (name, rest.strip_prefix(':').or(rest.is_empty().then_some("")).ok_or("text follows a ]")?)
        }
        None => text.split_once(':').unwrap_or((text, "")),
    };
    Ok((decoded("a host", name)?, decoded("a port", port)?))
}

fn decoded(what: &str, text: &str) -> Result<String, String> {
    let bytes = percent_decoded(text)
        .ok_or_else(|| format!("{what} has a % that two hexadecimal digits do not follow; write it %25"))?;
    if bytes.contains(&0) {
        return Err(format!("{what} has a %00"));
    }
    String::from_utf8(bytes).map_err(|_| format!("{what} is not UTF-8"))
}

/// `name=value name='value with blanks'`; a backslash takes the next character as it is.
fn words(text: &str) -> Result<Vec<Parameter>, String> {
    let mut found = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let end = rest.find(|c: char| c == '=' || c.is_ascii_whitespace()).unwrap_or(rest.len());
        let (name, after) = rest.split_at(end);
        // What is wrong with a parameter is said by its name: what is none may be a URL with a password.
        if !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
            return Err("it is neither a URL of postgres:// nor name=value words".into());
        }
        let after = after.trim_start().strip_prefix('=').ok_or("a word without = is in it")?;
        let (value, after) = value(after.trim_start())?;
        found.push((name.to_owned(), value));
        rest = after.trim_start();
    }
    Ok(found)
}

/// A value, and what follows it.
fn value(text: &str) -> Result<(String, &str), String> {
    let (quoted, text) = text.strip_prefix('\'').map_or((false, text), |rest| (true, rest));
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, c)) = characters.next() {
        match c {
            '\'' if quoted => return Ok((value, &text[at + 1..])),
            c if !quoted && c.is_ascii_whitespace() => return Ok((value, &text[at..])),
            '\\' => value.extend(characters.next().map(|(_, c)| c)),
            c => value.push(c),
        }
    }
    if quoted { Err("a ' has no other at the end of its value".into()) } else { Ok((value, "")) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(text: &str) -> Vec<(String, String)> {
        parameters(text).expect(text)
    }

    fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn urls() {
        let full = "postgresql://me:p%40ss%2F%3A@db:5433/app?sslmode=require&options=-c%20a%3Db";
        let expected = [
            ("user", "me"),
            ("password", "p@ss/:"),
            ("host", "db"),
            ("port", "5433"),
            ("dbname", "app"),
            ("sslmode", "require"),
            ("options", "-c a=b"),
        ];
        assert_eq!(read(full), pairs(&expected));
        assert_eq!(read("postgres://"), []);
        assert_eq!(read("postgres:///app?host=/run"), pairs(&[("dbname", "app"), ("host", "/run")]));
        assert_eq!(
            read("postgres://a,b:1,[::1]:2/d"),
            pairs(&[("host", "a,b,::1"), ("port", ",1,2"), ("dbname", "d")])
        );
        assert_eq!(read("postgres://%2Frun%2Fpg"), pairs(&[("host", "/run/pg")]));
        assert_eq!(read("postgres://h?ssl=true"), pairs(&[("host", "h"), ("sslmode", "require")]));
        // A + is a +.
        assert_eq!(read("postgres://a+b@h")[0].1, "a+b");
        for text in
            ["postgres://%zz@h", "postgres://h?x", "postgres://[::1", "postgres://[::1]x", "postgres://%00@h"]
        {
            assert!(parameters(text).is_err(), "{text}");
        }
    }

    #[test]
    fn key_value_words() {
        assert_eq!(
            read(r" host = db  user='a b\'c' password=x\ y\\ sslmode=require"),
            pairs(&[("host", "db"), ("user", "a b'c"), ("password", r"x y\"), ("sslmode", "require")])
        );
        assert_eq!(read("password=''"), pairs(&[("password", "")]));
        for text in ["host", "host='x", "a b=c"] {
            assert!(parameters(text).is_err(), "{text}");
        }
    }

    #[test]
    fn no_error_quotes_a_secret() {
        for text in [
            "postgres://u:secret%@h",
            "password='secret",
            "postgres://u:secret@h?x",
            "u:secret@h",
            "postgres:/u:secret@h/d?sslmode=require",
            "Postgres://u:secret@h/d?sslmode=require",
            " postgres://u:secret@h/d?sslmode=require",
        ] {
            let error = parameters(text).expect_err(text);
            assert!(!error.contains("secret"), "{error}");
        }
    }

    fn encoded(text: &str) -> String {
        text.bytes().map(|byte| format!("%{byte:02x}")).collect()
    }

    proptest! {
        /// What is encoded is read back, whatever it is, in both forms.
        #[test]
        fn values_come_back(values in prop::collection::vec("[^\0]{1,12}", 5)) {
            let [user, password, host, dbname, option] = values.as_slice() else { unreachable!() };
            let url = format!(
                "postgres://{}:{}@{}/{}?options={}",
                encoded(user), encoded(password), encoded(host), encoded(dbname), encoded(option)
            );
            let names = ["user", "password", "host", "dbname", "options"];
            let expected: Vec<_> =
                names.iter().zip(&values).map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
            prop_assert_eq!(read(&url), expected.clone());
            let words: Vec<String> = expected
                .iter()
                .map(|(name, value)| {
                    format!("{name}='{}'", value.replace('\\', "\\\\").replace('\'', "\\'"))
                })
                .collect();
            prop_assert_eq!(read(&words.join(" ")), expected);
        }

        /// Nothing makes it panic.
        #[test]
        fn any_text_is_read_or_refused(text in ".{0,40}") {
            drop(parameters(&text));
            drop(parameters(&format!("postgres://{text}")));
        }
    }
}
