// Runs a small program in a Node of its own, for what may hang or end the process that does it.

import { execFile } from 'node:child_process'

/** What came of it: its last line of output, as JSON, or why there is none. @internal */
export type ChildResult =
  | { outcome: 'done'; value: unknown }
  | { outcome: 'late' }
  | { outcome: 'killed'; by: string }
  | { outcome: 'failed'; reason: string }

/**
 * @param program JavaScript, whose last line of output is JSON; `process.argv[1]` is `argument`.
 * @internal
 */
export function runInChild(
  program: string,
  argument: string,
  seconds: number,
): Promise<ChildResult> {
  return new Promise((resolve) => {
    execFile(
      process.execPath,
      ['-e', program, argument],
      {
        timeout: 1000 * seconds,
        killSignal: 'SIGKILL',
        // Options for this process, such as a debugger's, are none for that one.
        env: { ...process.env, NODE_OPTIONS: '', ELECTRON_RUN_AS_NODE: '1' },
      },
      (error, stdout, stderr) => {
        // The last line: a driver may print something, too.
        if (error === null) {
          const last = stdout.slice(stdout.lastIndexOf('\n'))
          resolve({ outcome: 'done', value: JSON.parse(last) as unknown })
        } else if (error.killed) resolve({ outcome: 'late' })
        else if (error.signal) resolve({ outcome: 'killed', by: error.signal })
        else resolve({ outcome: 'failed', reason: stderr.trim() || error.message })
      },
    )
  })
}
