import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import * as assert from 'uvu/assert'
import { DiTError, type DiTErrorCode } from '../../lib/errors.js'

/** The path of a file of test/fixtures. */
export function fixture(...names: string[]): string {
  return path.join(fileURLToPath(new URL('../fixtures', import.meta.url)), ...names)
}

/** A folder of its own for a test file, removed when the process ends. */
export function temporaryFolder(): string {
  const folder = mkdtempSync(path.join(tmpdir(), 'dit-native-test-'))
  process.on('exit', () => rmSync(folder, { recursive: true, force: true }))
  return folder
}

/** Fails unless the action rejects with a DiTError of this code whose message matches. */
export async function rejects(
  action: () => Promise<unknown>,
  code: DiTErrorCode,
  message: RegExp,
): Promise<void> {
  try {
    await action()
  } catch (error) {
    assert.instance(error, DiTError, `expected a DiTError, got ${(error as Error).stack}`)
    assert.is((error as DiTError).code, code, (error as DiTError).message)
    assert.match((error as DiTError).message, message)
    return
  }
  throw new Error(`expected an error that matches ${message}, but there was none`)
}
