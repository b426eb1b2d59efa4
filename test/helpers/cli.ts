import { spawn } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import * as assert from 'uvu/assert'

const main = fileURLToPath(new URL('../../lib/cli/main.ts', import.meta.url))

export interface CliResult {
  status: number | null
  stdout: string
  stderr: string
}

export interface CliOptions {
  env?: Record<string, string>
  /** Sends SIGINT when what was printed on stderr so far matches. */
  interruptAt?: RegExp
  /** Closes our end of stdout at once. */
  closeStdout?: boolean
}

/** Runs `dit` in a process of its own, from the sources. */
export function dit(args: string[], options: CliOptions = {}): Promise<CliResult> {
  const child = spawn(process.execPath, ['--import', import.meta.resolve('tsx'), main, ...args], {
    stdio: ['ignore', 'pipe', 'pipe'],
    env: { ...process.env, DIT_DEBUG: '', ...options.env },
  })
  let stdout = ''
  let stderr = ''
  let interrupted = false
  child.stdout.setEncoding('utf8').on('data', (text: string) => {
    stdout += text
  })
  if (options.closeStdout) child.stdout.destroy()
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    stderr += text
    if (interrupted || !options.interruptAt?.test(stderr)) return
    interrupted = true
    child.kill('SIGINT')
  })
  return new Promise((resolve, reject) => {
    child.on('error', reject)
    child.on('close', (status) => resolve({ status, stdout, stderr }))
  })
}

/** Runs `dit`, which has to succeed, and returns its JSON. */
export async function ditJson(...args: string[]): Promise<unknown> {
  const { status, stdout, stderr } = await dit([...args, '--json'])
  assert.is(status, 0, stderr)
  assert.is(stdout.split('\n').length, 2, 'one line')
  return JSON.parse(stdout)
}
