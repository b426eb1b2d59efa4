// Waiting for what other threads and processes do.

import { createServer } from 'node:net'
import { setTimeout as sleep } from 'node:timers/promises'

/** Resolves as soon as the condition holds; rejects, with what was waited for, when it does not in time. */
export async function until(
  what: string,
  condition: () => boolean | Promise<boolean>,
  seconds = 50,
): Promise<void> {
  for (const limit = Date.now() + 1000 * seconds; !(await condition()); await sleep(1)) {
    if (Date.now() > limit) throw new Error(`${what}: not within ${seconds} s`)
  }
}

/** A port of loopback that nobody listens on now. */
export async function freePort(): Promise<number> {
  const server = createServer()
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  const { port } = server.address() as { port: number }
  await new Promise((resolve) => server.close(resolve))
  return port
}
