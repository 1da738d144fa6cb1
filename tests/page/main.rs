//! The live page: in a real browser, of a real proxy, while something goes on.
//!
//! `make test-page` runs it, and leaves pictures in `target/page`.

mod browser;
#[path = "../support/mod.rs"]
mod support;

use std::path::{Path, PathBuf};

use browser::Browser;
use cachefence::demo::client::Client;
use cachefence::demo::servers::wait_until;
use support::{Fallible, Outcome, PATIENCE, Setup, World};

/// The second table's keys can be anything that somebody types.
const SETTINGS: &str = "
[[guard]]
table = \"users\"
keys = [\"user:<id>\", \"user:<id>:profile\"]

[[guard]]
table = \"pages\"
keys = [\"page:<path>\"]
on_stale = \"delete\"
";

/// What somebody might call a page, and what must not become part of ours.
const HOSTILE: &str = "<img src=x onerror=alert(1)>\r\n\u{202e}gnp.exe";

fn picture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("target/page").join(format!("{name}.png"))
}

/// A stale fill: read before a commit, filled after it.
async fn stale_fill(world: &World, client: &mut Client, id: i64, n: i64) -> Outcome {
    let before = world.snapshot().await?;
    world.rename(id, &format!("v{n}")).await?;
    world.applied().await?;
    client.cmd(&["ASOF", &before, "SET", &format!("user:{id}"), "old"]).await?;
    Ok(())
}

/// Hits, misses, fresh fills, and some that are refused.
async fn traffic(world: &World) -> Outcome {
    let mut client = world.client().await?;
    for id in 1..=5 {
        world.warm(id).await?;
        for _ in 0..id * 7 {
            client.cmd(&["GET", &format!("user:{id}")]).await?;
        }
    }
    for n in 0..3 {
        stale_fill(world, &mut client, 6, n).await?;
    }
    let before = world.snapshot().await?;
    world.sql.execute("INSERT INTO pages VALUES ($1)", &[&HOSTILE]).await?;
    world.applied().await?;
    client.cmd(&["ASOF", &before, "SET", &format!("page:{HOSTILE}"), "old"]).await?;
    Ok(())
}

async fn start() -> Fallible<World> {
    let world = Setup::new(support::DEFAULT).replica().start().await?;
    world.sql.batch_execute("CREATE TABLE pages (path text PRIMARY KEY)").await?;
    world.sql.batch_execute("ALTER PUBLICATION cachefence ADD TABLE pages").await?;
    let World { mut proxy, redis, replica, sql, primary, servers, .. } = world;
    proxy.rewrite(&(servers.clone() + SETTINGS))?;
    proxy.stop().await?;
    proxy.relaunch().await?;
    let world = World { proxy, redis, replica, sql, primary, servers, guards: SETTINGS.into() };
    world.level().await?;
    Ok(world)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs Chromium: make test-page"]
async fn the_page_tells_how_things_are_while_they_change() -> Outcome {
    let mut world = start().await?;
    traffic(&world).await?;
    let url = world.proxy.admin_url();
    let mut browser = Browser::start(1280, 900)?;
    browser.look(1280, "light")?;
    browser.open(&format!("{url}/"))?;

    case("one line says what is promised and that it is kept");
    browser.wait("document.querySelector('#health').dataset.level === 'good'")?;
    let sentence = browser.text("#sentence")?;
    assert!(
        sentence.starts_with("Bounded contract kept: a hit is behind the database by no more"),
        "{sentence}"
    );
    assert_eq!(browser.eval("document.title")?, "cachefence");

    case("the table of guards counts what went on");
    let row = browser.text("#guards tbody tr")?;
    assert!(row.contains("public.users") && row.contains("user:<id>:profile"), "{row}");
    let status = world.status().await?;
    let guard = status.pointer("/guards/0").ok_or("no guard")?;
    assert!(guard["hits"].as_u64() >= Some(7 * 15) && guard["stale"].as_u64() >= Some(3), "{guard}");
    for (column, name) in [(2, "hits"), (5, "fresh"), (6, "stale"), (7, "unproven")] {
        let cell = format!(
            "document.querySelector('#guards tbody tr').cells[{column}].textContent === '{}'",
            guard[name]
        );
        browser.wait(&cell)?;
    }
    assert_eq!(browser.eval("document.querySelector('#guards tbody tr').cells[1].textContent")?, "guarded");

    case("refused fills say why, and a hostile key stays a text");
    browser.wait("document.querySelectorAll('#refused tbody tr').length === 4")?;
    let last = browser.text("#refused tbody tr")?;
    assert!(last.contains("page:<img src=x onerror=alert(1)>\\r\\n"), "{last}");
    assert!(last.contains("The fill's data does not contain the commit that ended at 0/"), "{last}");
    assert!(last.contains("stale, refused, and the key deleted"), "{last}");
    assert!(last.contains("the snapshot ") && last.contains("the write at 0/"), "{last}");
    assert_eq!(browser.eval("document.images.length")?, 0);

    case("what is refused now appears by itself");
    let mut client = world.client().await?;
    stale_fill(&world, &mut client, 7, 9).await?;
    browser.wait("document.querySelector('#refused tbody tr').cells[1].textContent === 'user:7'")?;

    case("the charts have a past, and say in words what they show");
    browser.wait("document.querySelector('#lag path.line') !== null")?;
    browser.wait("/^now .*, at most /.test(document.querySelector('#lag-title').textContent)")?;
    browser.wait("/primary .*replica-1 /.test(document.querySelector('#behind-words').innerText)")?;
    browser.wait("document.querySelectorAll('#behind path.line').length === 2")?;

    case("a key is explained, by the keyboard alone");
    browser.eval("document.querySelector('#key').focus()")?;
    browser.type_in("user:7")?;
    browser.press("Enter", "\r")?;
    browser.wait("/last write/.test(document.querySelector('#explained').innerText)")?;
    browser.press("Tab", "")?;
    assert_eq!(browser.eval("document.activeElement.id")?, "db");

    looks(&mut browser)?;
    states(&mut world, &mut browser).await?;

    case("it asked nobody but the proxy, and nothing was out of order");
    let strangers: Vec<_> = browser
        .requests
        .iter()
        .filter(|asked| !asked.starts_with(&url) && !asked.starts_with("data:"))
        .collect();
    assert!(strangers.is_empty(), "{strangers:?}");
    assert!(browser.complaints.is_empty(), "{:?}", browser.complaints);
    Ok(())
}

fn case(name: &str) {
    println!("{name}");
}

/// In both schemes, on a desk and on a phone.
fn looks(browser: &mut Browser) -> Outcome {
    for (scheme, is_dark) in [("light", false), ("dark", true)] {
        for width in [1280, 390] {
            case(&format!("{scheme}, {width} wide"));
            browser.look(width, scheme)?;
            let brightness = "getComputedStyle(document.documentElement).backgroundColor.match(/\\d+/g).slice(0, 3).reduce((a, b) => a + +b, 0)";
            let paper = browser.eval(brightness)?.as_f64().unwrap_or(f64::NAN);
            assert_eq!(paper < 200.0, is_dark, "{scheme}: {paper}");
            let overflow = "document.documentElement.scrollWidth <= innerWidth";
            assert_eq!(browser.eval(overflow)?, true, "{scheme} {width}: wider than the window");
            let contrasts = browser.eval(CONTRASTS)?;
            assert_eq!(contrasts, serde_json::json!([]), "{scheme} {width}: too little contrast");
            browser.picture(&picture(&format!("{scheme}-{width}")))?;
        }
    }
    browser.look(1280, "light")
}

/// Texts that differ from their ground by less than WCAG's 4.5 to 1.
const CONTRASTS: &str = "(() => {
  const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((c) => (c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, n) => sum + c * [0.2126, 0.7152, 0.0722][n], 0);
  const ground = (e) => { for (; e; e = e.parentElement) {
    const color = rgb(getComputedStyle(e).backgroundColor);
    if (color.length < 4 || color[3] > 0) return color;
  } return [255, 255, 255]; };
  const poor = [];
  for (const e of document.querySelectorAll('body *')) {
    const own = [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
    if (!own || e.closest('svg, noscript, script, style') || !e.offsetParent) continue;
    const [a, b] = [light(rgb(getComputedStyle(e).color)), light(ground(e))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < 4.5) poor.push(e.tagName + ' ' + e.textContent.slice(0, 30) + ' ' + ratio.toFixed(2));
  }
  return poor;
})()";

/// What goes wrong is seen as it happens, and so is its end.
async fn states(world: &mut World, browser: &mut Browser) -> Outcome {
    case("a source out of sight is told");
    world.replica.as_mut().ok_or("no replica")?.freeze()?;
    browser.wait("document.querySelector('#health').dataset.level === 'watch'")?;
    browser.wait("/But source replica-1: /.test(document.querySelector('#sentence').textContent)")?;
    world.replica.as_mut().ok_or("no replica")?.thaw()?;
    browser.wait("document.querySelector('#health').dataset.level === 'good'")?;

    case("a feed that is lost turns the line, and no guard is called fine");
    world.primary.freeze()?;
    browser.wait("document.querySelector('#health').dataset.level === 'bad'")?;
    browser.wait("/^Not ready: the feed is lost: /.test(document.querySelector('#sentence').textContent)")?;
    browser.wait("document.querySelector('#guards tbody tr').cells[1].textContent === 'feed lost'")?;
    browser.wait("document.querySelector('rect.lost') !== null")?;
    assert_eq!(browser.eval("document.title")?, "!! cachefence");
    browser.picture(&picture("lost"))?;
    world.primary.thaw()?;
    browser.wait("document.querySelector('#health').dataset.level === 'good'")?;

    case("a proxy that is gone is told, and its successor is shown without a reload of the page");
    world.proxy.stop().await?;
    browser
        .wait("/^The proxy does not answer since /.test(document.querySelector('#sentence').textContent)")?;
    world.proxy.relaunch().await?;
    browser.wait("document.querySelector('#health').dataset.level === 'good'")?;
    browser.wait("/^None since the start/.test(document.querySelector('#none-refused').textContent)")?;
    browser.wait("!document.querySelector('#none-refused').hidden && document.querySelector('#refused').offsetParent === null")?;
    // What is refused by the successor is shown, and the sentence of the empty table goes.
    let mut client = world.client().await?;
    stale_fill(world, &mut client, 8, 1).await?;
    browser.wait("document.querySelector('#none-refused').hidden && document.querySelectorAll('#refused tbody tr').length === 1")?;

    case("while it observes nothing is claimed");
    let observing = world.servers.clone() + "\n[proxy]\nmode = \"observe\"\n" + SETTINGS;
    world.proxy.stop().await?;
    world.proxy.rewrite(&observing)?;
    world.proxy.relaunch().await?;
    browser.wait(
        "/^Observing: nothing is deleted or refused/.test(document.querySelector('#sentence').textContent)",
    )?;
    browser.wait("document.querySelector('#guards tbody tr').cells[1].textContent === 'observed'")?;
    let mut client = world.client().await?;
    wait_until("the proxy to take commands", PATIENCE, async || client.cmd(&["PING"]).await.is_ok()).await?;
    stale_fill(world, &mut client, 9, 1).await?;
    browser.wait("/would be refused/.test(document.querySelector('#refused').innerText)")?;
    browser.picture(&picture("observing"))
}
