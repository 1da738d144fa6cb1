// What the programs share: where the cache is, and how a case is reported.

import { randomBytes } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';

export const host = process.env.CACHE_HOST;
export const port = Number(process.env.CACHE_PORT);
export const protocols = process.env.PROTOCOLS.split(' ').map(Number);
// A row of the guarded table that nobody else uses; none without the proxy.
export const userId = Number(process.env.USER_ID ?? 0);

export const binary = Buffer.from(Array.from({ length: 256 }, (_, n) => n));
export const big = Buffer.alloc(5 << 20, randomBytes(1 << 20));

const patience = 20_000;

export async function until(what, condition) {
  const end = Date.now() + patience;
  for (;;) {
    const found = await condition();
    if (found) return found;
    if (Date.now() > end) throw new Error(`waited in vain for ${what}`);
    await sleep(5);
  }
}

// Runs the cases; each gets a key of its own. One that cannot be run returns why.
export async function run(client, cases, protocol, context) {
  for (const test of cases) {
    let line = `ok resp${protocol} ${test.name}`;
    let timer;
    try {
      const late = new Promise((_, reject) => {
        timer = setTimeout(reject, 2 * patience, new Error('it hangs'));
      });
      const skipped = await Promise.race([test(context, `${client}:${protocol}:${test.name}:`, protocol), late]);
      if (skipped) line += ` # SKIP ${skipped}`;
    } catch (error) {
      const where = error.stack?.split('\n').find((frame) => frame.includes(process.argv[1])) ?? '';
      line = `not ${line}: ${error.message} ${where}`.replaceAll('\n', ' ').slice(0, 500);
      process.exitCode = 1;
    }
    clearTimeout(timer);
    console.log(line);
  }
}
