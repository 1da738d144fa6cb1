//! Statements at random: what applications and administrators do to the tables.

use crate::tables::{HOME_DB, OTHER_DB, PEOPLE, TABLES};

/// Numbers that look random and are the same each time.
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        // Seeds that differ little must not start alike; a state of 0 would stay 0.
        let mut dice = Self(seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
        (0..8).for_each(|_| _ = dice.roll(2));
        dice
    }

    pub fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) % sides
    }

    pub fn one_in(&mut self, sides: u64) -> bool {
        self.roll(sides) == 0
    }

    pub fn pick<'a>(&mut self, among: &[&'a str]) -> &'a str {
        among[self.roll(among.len() as u64) as usize]
    }
}

/// Few enough that sessions meet.
const IDS: u64 = 40;

const TEXTS: [&str; 14] = [
    "NULL",
    "''",
    "'a'",
    "'b:c'",
    "'ü€😀'",
    "'O''Brien'",
    "'back\\slash'",
    "E'line\\nbreak\\ttab'",
    "'<id>'",
    "' {x} '",
    "'%s *?[a]'",
    "'a,b'",
    "'\"quoted\"'",
    "'NULL'",
];

fn id(dice: &mut Dice) -> u64 {
    dice.roll(IDS)
}

/// `column BETWEEN a AND b`
fn range(dice: &mut Dice, column: &str) -> String {
    let first = id(dice);
    format!("{column} BETWEEN {first} AND {}", first + dice.roll(4))
}

fn text(dice: &mut Dice) -> String {
    match dice.roll(3) {
        0 => format!("'t{}'", dice.roll(30)),
        _ => dice.pick(&TEXTS).to_owned(),
    }
}

/// Of so many characters at most; mostly short. Not compressible, so it is stored out of line.
fn long_text(dice: &mut Dice, longest: u64) -> String {
    match dice.roll(3) {
        0 => format!(
            "(SELECT string_agg(md5(i::text), '') FROM generate_series({}, {}) i)",
            dice.roll(10),
            10 + dice.roll(longest / 32 - 10)
        ),
        _ => text(dice),
    }
}

/// A statement on one of the tables, or about it. `fresh` is a number that nobody has used.
pub fn statement(dice: &mut Dice, version: i32, fresh: u64) -> String {
    match dice.roll(28) {
        0..=4 => people(dice, fresh),
        5..=8 => orders(dice),
        9..=11 => kinds(dice),
        12..=14 => by_index(dice),
        15..=16 => large(dice),
        17..=18 => slugs(dice),
        19 => copy(dice, fresh),
        20 => {
            let truncated = [
                "people CASCADE",
                TABLES[2].sql,
                "kinds, by_index",
                "large",
                "slugs",
                "people",
                "beasts",
                "ONLY wolves",
                "days",
            ];
            // Where there are no messages, altered tables interrupt the stream.
            let truncated = if version >= 140_000 { &truncated[..] } else { &truncated[..8] };
            // Whole guards hide what else the transaction does.
            if !dice.one_in(3) { by_index(dice) } else { format!("TRUNCATE {}", dice.pick(truncated)) }
        }
        21 if version >= 140_000 => named(dice),
        22 if version >= 150_000 => merge(dice),
        24..=25 => days(dice),
        26..=27 => beasts(dice),
        _ if version >= 140_000 => ddl(dice),
        _ => by_index(dice),
    }
}

/// Partitions: rows that go from one to another, and statements on one alone.
fn days(dice: &mut Dice) -> String {
    match dice.roll(8) {
        0..=2 => format!(
            "INSERT INTO days VALUES ({}, {}, {}), ({}, {}, 'n') ON CONFLICT DO NOTHING",
            id(dice),
            dice.roll(30),
            text(dice),
            id(dice),
            dice.roll(30)
        ),
        3 => format!("UPDATE days SET note = {} WHERE {}", text(dice), range(dice, "id")),
        4 => format!("UPDATE days SET day = {} WHERE {}", dice.roll(30), range(dice, "id")),
        5 => format!(
            "UPDATE {} SET id = id + 1000 WHERE {}",
            dice.pick(&["days", "days_2"]),
            range(dice, "id")
        ),
        6 => format!("DELETE FROM {} WHERE {}", dice.pick(&["days_1", "days_3"]), range(dice, "id")),
        _ => format!("DELETE FROM days WHERE {} OR id > 1000", range(dice, "id")),
    }
}

/// Tables of which one inherits from the other.
fn beasts(dice: &mut Dice) -> String {
    let table = dice.pick(&["beasts", "wolves", "ONLY beasts"]);
    match dice.roll(6) {
        0 | 1 => format!(
            "INSERT INTO {} (id, name) VALUES ({}, {}) ON CONFLICT (id) DO UPDATE SET name = 'again'",
            dice.pick(&["beasts", "wolves"]),
            id(dice),
            text(dice)
        ),
        2 => format!("UPDATE {table} SET name = {} WHERE {}", text(dice), range(dice, "id")),
        3 => format!("UPDATE {table} SET id = id + 1000 WHERE {}", range(dice, "id")),
        _ => format!("DELETE FROM {table} WHERE {} OR id > 1000", range(dice, "id")),
    }
}

fn people(dice: &mut Dice, fresh: u64) -> String {
    let conflict = dice.pick(&[
        "",
        "ON CONFLICT DO NOTHING",
        "ON CONFLICT (id) DO UPDATE SET email = excluded.email, name = people.name || '+'",
        "ON CONFLICT (id) DO UPDATE SET name = excluded.name WHERE people.id % 2 = 0",
    ]);
    match dice.roll(9) {
        0 | 1 => format!(
            "INSERT INTO people (id, email, name, bio) VALUES ({}, {}, {}, {}), ({}, {}, 'n', NULL) {conflict}",
            id(dice),
            text(dice),
            text(dice),
            long_text(dice, 9_000),
            id(dice),
            text(dice)
        ),
        2 => {
            let set = dice.pick(&[
                "name = name || 'x'",
                "name = name",
                "bio = upper(bio)",
                "bio = repeat(md5(name), 99)",
            ]);
            format!("UPDATE people SET {set} WHERE {}", range(dice, "id"))
        }
        3 => format!("UPDATE people SET email = {} WHERE {}", text(dice), range(dice, "id")),
        // By the foreign key, orders follow.
        4 => format!("UPDATE people SET id = {fresh} WHERE id = {}", id(dice)),
        5 => format!("DELETE FROM people WHERE {}", range(dice, "id")),
        6 => format!("DELETE FROM people WHERE id >= {IDS} AND id % 3 = {}", dice.roll(3)),
        7 => format!(
            "WITH gone AS (DELETE FROM people WHERE {} RETURNING *) \
             INSERT INTO people (id, email, name, bio) SELECT id + {fresh}, email, name, bio FROM gone",
            range(dice, "id")
        ),
        _ => format!(
            "INSERT INTO people (id, email, name) SELECT i, {}, 'many' FROM generate_series({fresh}, {}) i {conflict}",
            text(dice),
            // Some are sent before they have committed.
            fresh + if dice.one_in(3) { 100 + dice.roll(500) } else { dice.roll(20) }
        ),
    }
}

fn orders(dice: &mut Dice) -> String {
    let orders = TABLES[2].sql;
    match dice.roll(6) {
        0..=2 => format!(
            "INSERT INTO {orders} SELECT id, {}, {} FROM people WHERE {} {}",
            dice.roll(5),
            dice.roll(100),
            range(dice, "id"),
            dice.pick(&[
                "",
                "ON CONFLICT DO NOTHING",
                "ON CONFLICT (\"Nr €\", \"user\") DO UPDATE SET total = 0"
            ])
        ),
        3 => format!("UPDATE {orders} SET total = total + 0.1 WHERE {}", range(dice, "\"user\"")),
        4 => format!("UPDATE {orders} SET \"Nr €\" = \"Nr €\" + 5 WHERE {}", range(dice, "\"user\"")),
        _ => format!("DELETE FROM {orders} WHERE {}", range(dice, "\"user\"")),
    }
}

fn kinds(dice: &mut Dice) -> String {
    match dice.roll(5) {
        0 | 1 => {
            let mut values: Vec<String> =
                KINDS.iter().map(|(_, values)| dice.pick(values).to_owned()).collect();
            if dice.one_in(3) {
                let n = dice.roll(values.len() as u64) as usize;
                values[n] = "NULL".to_owned();
            }
            let columns: Vec<&str> = KINDS.iter().map(|(column, _)| *column).collect();
            let sets: Vec<String> =
                columns.iter().map(|column| format!("{column} = excluded.{column}")).collect();
            format!(
                "INSERT INTO kinds (id, {}) VALUES ({}, {}) ON CONFLICT (id) DO UPDATE SET {}",
                columns.join(", "),
                id(dice),
                values.join(", "),
                sets.join(", ")
            )
        }
        2 | 3 => {
            let (column, values) = KINDS[dice.roll(KINDS.len() as u64) as usize];
            format!("UPDATE kinds SET {column} = {} WHERE {}", dice.pick(values), range(dice, "id"))
        }
        _ => format!("DELETE FROM kinds WHERE {}", range(dice, "id")),
    }
}

/// Values whose printed form has its ways.
const KINDS: [(&str, &[&str]); 22] = [
    ("u", &["'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11'", "md5(random()::text)::uuid"]),
    ("b", &["true", "false"]),
    ("d", &["'2024-02-29'", "'infinity'", "'0044-03-15 BC'", "'12345-01-01'"]),
    ("ts", &["now()", "'-infinity'", "'2024-07-01 12:00:00.123456+09'", "'0001-01-01 00:00 BC'"]),
    ("st", &["'2024-07-01 12:00:00.5'", "localtimestamp", "'infinity'"]),
    ("tt", &["'24:00:00'", "'01:02:03.000004'"]),
    ("iv", &["'1 year -2 days 03:04:05.6'", "'-1 month'", "'0'", "'100000 hours'"]),
    ("f", &["0.1::float8 + 0.2", "'NaN'", "'-Infinity'", "1e300", "-0.0::float8", "random()"]),
    ("g", &["1.1", "'Infinity'", "1e-40::float8::float4", "16777217"]),
    ("n", &["1.10", "'NaN'", "1e30", "-0.00", "12345678901234567890.123"]),
    ("m", &["'12.34'", "'-1000000'"]),
    ("o", &["4294967295", "0"]),
    ("by", &["'\\x00ff'", "'\\x'", "decode('deadbeef', 'hex')"]),
    ("bi", &["B'101'", "B''"]),
    ("j", &["'{\"b\": 1, \"a\": [1.0, null, \"ü\"]}'", "'\"x\"'", "'null'"]),
    ("ip", &["'10.0.0.1/8'", "'::1'", "'192.168.0.1'"]),
    ("a", &["'{}'", "ARRAY['a,b', 'NULL', NULL, 'q\"', '']", "'[2:3]={a,b}'", "'{{a},{b}}'"]),
    ("e", &["'sad'", "'o''k'", "'ganz fröhlich'"]),
    ("dm", &["'short'", "''", "'ü'"]),
    ("c", &["'ab'", "''", "'abcde'"]),
    ("r", &["'[1,5)'", "'empty'", "'[,3]'"]),
    ("p", &["ROW(1, 'a b')", "ROW(NULL, NULL)", "ROW(2, '')"]),
];

fn by_index(dice: &mut Dice) -> String {
    let code = |dice: &mut Dice| format!("coalesce({}, 'none')", text(dice));
    match dice.roll(6) {
        0..=2 => format!(
            "INSERT INTO by_index (id, code, n, note) VALUES ({}, {}, {}, NULL) {}",
            id(dice),
            code(dice),
            dice.roll(6),
            dice.pick(&[
                "",
                "ON CONFLICT DO NOTHING",
                "ON CONFLICT (n, code) DO UPDATE SET note = by_index.note || 'x'"
            ])
        ),
        3 => format!("UPDATE by_index SET note = {} WHERE n = {}", text(dice), dice.roll(6)),
        4 => format!("UPDATE by_index SET code = {} WHERE n = {} AND id < 10", code(dice), dice.roll(6)),
        _ => format!("DELETE FROM by_index WHERE n = {} AND id > {}", dice.roll(6), id(dice)),
    }
}

fn large(dice: &mut Dice) -> String {
    match dice.roll(6) {
        0 | 1 => format!(
            "INSERT INTO large VALUES ({}, {}, {}) \
             ON CONFLICT (id) DO UPDATE SET title = excluded.title, body = excluded.body",
            id(dice),
            long_text(dice, 8_000),
            long_text(dice, 8_000)
        ),
        2 => format!("UPDATE large SET title = {} WHERE {}", long_text(dice, 8_000), range(dice, "id")),
        3 => format!("UPDATE large SET body = {} WHERE {}", long_text(dice, 8_000), range(dice, "id")),
        4 => format!("UPDATE large SET id = id + 1000 WHERE {}", range(dice, "id")),
        _ => format!("DELETE FROM large WHERE {} OR id > 1000", range(dice, "id")),
    }
}

fn slugs(dice: &mut Dice) -> String {
    // An index takes no more than 2,704 bytes.
    let slug = format!("coalesce({}, 'none')", long_text(dice, 2_500));
    match dice.roll(5) {
        0 | 1 => format!(
            "INSERT INTO slugs VALUES ({slug}, {}) ON CONFLICT (slug) DO UPDATE SET body = 'again'",
            long_text(dice, 8_000)
        ),
        2 => format!(
            "UPDATE slugs SET body = {} WHERE length(slug) % 7 = {}",
            long_text(dice, 8_000),
            dice.roll(7)
        ),
        3 => format!(
            "UPDATE slugs SET slug = left(slug || 'x', 2500) WHERE length(slug) % 7 = {}",
            dice.roll(7)
        ),
        _ => format!("DELETE FROM slugs WHERE length(slug) % 7 = {}", dice.roll(7)),
    }
}

/// By way of a file in the server's directory.
fn copy(dice: &mut Dice, fresh: u64) -> String {
    let (last, file) = (fresh + dice.roll(30), format!("copied-{fresh}"));
    format!(
        "COPY (SELECT i, CASE i % 4 WHEN 0 THEN E'a\\tb\\\\c' WHEN 1 THEN NULL ELSE i || '@ü' END, 'copied' \
         FROM generate_series({fresh}, {last}) i) TO PROGRAM 'cat > {file}'; \
         COPY people (id, email, name) FROM PROGRAM 'cat {file}; rm {file}'"
    )
}

/// Keys by message: one that nobody guards, one of the home db, and one of another, which is meant in both.
fn named(dice: &mut Dice) -> String {
    let one = |key: &str, dbs: &[u32]| {
        let oracle: Vec<String> = dbs.iter().map(|db| format!("oracle.named({key}, {db})")).collect();
        format!("SELECT cachefence.fence({key}), {}", oracle.join(", "))
    };
    match dice.roll(60) {
        // Enough to be handed on in parts.
        0 => one("'report:' || i", &[HOME_DB]) + " FROM generate_series(1, 12000) i",
        1..=20 => one(&format!("'person:{}'", id(dice)), &[HOME_DB]),
        21..=30 => one("'kind:5cd9bbd9-4b0c-4f1e-a0a8-2f8c4f3f0d11:t'", &[HOME_DB, OTHER_DB]),
        _ => one(&format!("'report:ü{}'", dice.roll(9)), &[HOME_DB]),
    }
}

fn merge(dice: &mut Dice) -> String {
    format!(
        "MERGE INTO people p USING generate_series({}, {}) i ON p.id = i \
         WHEN MATCHED AND i % 3 = 0 THEN DELETE WHEN MATCHED THEN UPDATE SET email = {} \
         WHEN NOT MATCHED AND i % 2 = 0 THEN INSERT (id, email) VALUES (i, {})",
        id(dice),
        id(dice) + 3,
        text(dice),
        text(dice)
    )
}

/// Changes of the tables that leave every template what it needs.
fn ddl(dice: &mut Dice) -> String {
    dice.pick(&[
        "ALTER TABLE people ADD COLUMN IF NOT EXISTS extra int DEFAULT 7",
        "ALTER TABLE people DROP COLUMN IF EXISTS extra",
        "ALTER TABLE people RENAME COLUMN extra TO spare",
        "ALTER TABLE people DROP COLUMN IF EXISTS spare",
        "ALTER TABLE people ADD COLUMN IF NOT EXISTS twice bigint GENERATED ALWAYS AS (id * 2) STORED",
        "ALTER TABLE people DROP COLUMN IF EXISTS twice",
        "ALTER TABLE people ALTER name TYPE varchar(5000)",
        "ALTER TABLE people ALTER name TYPE text",
        "ALTER TABLE people ALTER email TYPE varchar(5000)",
        "ALTER TABLE people ALTER email TYPE text",
        "CREATE INDEX IF NOT EXISTS people_email ON people (email)",
        "DROP INDEX IF EXISTS people_email",
        "ALTER TABLE by_index ALTER n TYPE bigint",
        "ALTER TABLE by_index ALTER n TYPE int",
        "ALTER TABLE by_index REPLICA IDENTITY FULL",
        "ALTER TABLE by_index REPLICA IDENTITY USING INDEX by_index_key",
        "ALTER TABLE \"Läden\".\"Bestell ung\" REPLICA IDENTITY FULL",
        "ALTER TABLE \"Läden\".\"Bestell ung\" REPLICA IDENTITY DEFAULT",
        "ALTER TABLE slugs REPLICA IDENTITY FULL",
        "ALTER TABLE slugs REPLICA IDENTITY DEFAULT",
        "ALTER TABLE slugs ADD COLUMN IF NOT EXISTS first text DEFAULT 'x'",
        "ALTER TABLE slugs DROP COLUMN IF EXISTS first",
        "ALTER TABLE large ALTER body TYPE varchar",
        "ALTER TABLE large ALTER body TYPE text",
        "REINDEX TABLE by_index",
        "CLUSTER by_index USING by_index_key",
        "ANALYZE kinds",
    ])
    .to_owned()
}

/// What cannot be done inside a transaction, or is not.
pub fn maintenance(dice: &mut Dice) -> &'static str {
    dice.pick(&[
        "VACUUM FULL people",
        "VACUUM FULL slugs",
        "VACUUM FULL large",
        "VACUUM by_index",
        "CLUSTER people USING people_pkey",
        "VACUUM ANALYZE",
        "CHECKPOINT",
        "SELECT pg_switch_wal()",
    ])
}

/// A guarded table under another name, or with another name of a column that a key is made of: what changes then cannot
/// be told, so once it is back the guard goes as a whole.
pub fn away_and_back(dice: &mut Dice, fresh: u64) -> Vec<String> {
    let (away, back) = match dice.roll(2) {
        0 => ("ALTER TABLE people RENAME TO elsewhere", "ALTER TABLE elsewhere RENAME TO people"),
        _ => ("ALTER TABLE people RENAME email TO mail", "ALTER TABLE people RENAME mail TO email"),
    };
    let table = if away.ends_with("elsewhere") { "elsewhere" } else { "people" };
    let column = if away.ends_with("mail") { "mail" } else { "email" };
    [
        // The triggers know the columns by their names.
        format!("ALTER TABLE people DISABLE TRIGGER oracle_rows; {away}"),
        format!("INSERT INTO {table} (id, {column}) VALUES ({fresh}, 'away')"),
        format!("{back}; ALTER TABLE people ENABLE ALWAYS TRIGGER oracle_rows"),
        format!("SELECT oracle.whole({PEOPLE}, {HOME_DB})"),
        format!("INSERT INTO people (id, email) VALUES ({}, 'back')", fresh + 1),
    ]
    .to_vec()
}
