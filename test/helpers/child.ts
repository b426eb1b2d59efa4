// Processes of their own, for what would end the tests' process.

import { spawn } from 'node:child_process'
import { fileURLToPath } from 'node:url'

const root = fileURLToPath(new URL('../..', import.meta.url))

export interface Ended {
  status: number | null
  signal: NodeJS.Signals | null
  stdout: string
  stderr: string
}

/**
 * Runs an ES module, given as text, in the root of the repository: it can import './lib/index.ts'.
 * One that has not ended after 50 s, times DIT_TEST_PATIENCE, is killed, which `signal` tells.
 */
export function runModule(source: string, ...flags: string[]): Promise<Ended> {
  return run([process.execPath, ...moduleArguments(source, flags)])
}

/**
 * Runs a CommonJS script, given as text, in the root of the repository, where `DiT` is that of the
 * compiled package (dist/), as users have it.
 */
export function runScript(source: string, ...flags: string[]): Promise<Ended> {
  return run([process.execPath, ...flags, '-e', `const { DiT } = require('dit-native')\n${source}`])
}

/** The same in a process that can write no file of more than `kilobytes`, as if the disk were full. */
export function runModuleWithin(kilobytes: number, source: string): Promise<Ended> {
  const shell = ['bash', '-c', 'ulimit -f "$0" && exec "$@"', String(kilobytes)]
  return run([...shell, process.execPath, ...moduleArguments(source, [])])
}

function moduleArguments(source: string, flags: string[]): string[] {
  return ['--import', import.meta.resolve('tsx'), ...flags, '--input-type=module', '-e', source]
}

function run([file, ...args]: string[]): Promise<Ended> {
  return new Promise((resolve, reject) => {
    const child = spawn(file as string, args, { cwd: root, stdio: ['ignore', 'pipe', 'pipe'] })
    let stdout = ''
    let stderr = ''
    child.stdout.setEncoding('utf8').on('data', (text: string) => {
      stdout += text
    })
    child.stderr.setEncoding('utf8').on('data', (text: string) => {
      stderr += text
    })
    const patience = Number(process.env.DIT_TEST_PATIENCE ?? 1)
    const timer = setTimeout(() => child.kill('SIGKILL'), 50_000 * patience)
    child.on('error', reject)
    child.on('close', (status, signal) => {
      clearTimeout(timer)
      resolve({ status, signal, stdout, stderr })
    })
  })
}
