// Processes of their own for what is measured, asked one thing at a time.

import { type ChildProcess, fork } from 'node:child_process'
import { fileURLToPath } from 'node:url'

/** What a child can be asked: from the arguments of each to its answer. */
export type Handlers = Record<string, (argument: never) => unknown>

type Argument<H extends Handlers, K extends keyof H> = Parameters<H[K]>[0]
type Answer<H extends Handlers, K extends keyof H> = Awaited<ReturnType<H[K]>>

/** The parent's end. */
export class Child<H extends Handlers> {
  readonly #process: ChildProcess

  /** Starts a module of this folder that calls `serve`. */
  constructor(module: string, env: Record<string, string> = {}) {
    this.#process = fork(fileURLToPath(new URL(module, import.meta.url)), {
      execArgv: ['--import', 'tsx'],
      serialization: 'advanced',
      env: { ...process.env, ...env },
    })
  }

  ask<K extends keyof H & string>(name: K, argument: Argument<H, K>): Promise<Answer<H, K>> {
    return new Promise((resolve, reject) => {
      const onExit = (status: number | null, signal: string | null) => {
        reject(new Error(`the process ended (${signal ?? status}) when asked for ${name}`))
      }
      this.#process.once('exit', onExit)
      this.#process.once('message', (reply: { answer?: Answer<H, K>; error?: string }) => {
        this.#process.off('exit', onExit)
        if (reply.error === undefined) resolve(reply.answer as Answer<H, K>)
        else reject(new Error(reply.error))
      })
      this.#process.send({ name, argument })
    })
  }

  async stop(): Promise<void> {
    if (this.#process.exitCode !== null) return
    const ended = new Promise((resolve) => this.#process.once('exit', resolve))
    this.#process.disconnect()
    await ended
  }
}

/** The child's end: answers until the parent hangs up. */
export function serve(handlers: Handlers): void {
  process.on('message', async ({ name, argument }: { name: string; argument: never }) => {
    try {
      process.send?.({ answer: await handlers[name]?.(argument) })
    } catch (error) {
      process.send?.({ error: (error as Error).stack ?? String(error) })
    }
  })
  process.on('disconnect', () => process.exit())
}
