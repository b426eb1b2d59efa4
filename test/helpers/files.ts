import { cpSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import * as assert from 'uvu/assert'
import { DiTError, type DiTErrorCode } from '../../lib/errors.js'

/** The path of a file of test/fixtures. */
export function fixture(...names: string[]): string {
  return path.join(fileURLToPath(new URL('../fixtures', import.meta.url)), ...names)
}

let root: string | undefined

/** A new empty folder, removed when the process ends. */
export function temporaryFolder(): string {
  if (root === undefined) {
    const made = mkdtempSync(path.join(tmpdir(), 'dit-native-test-'))
    process.on('exit', () => rmSync(made, { recursive: true, force: true }))
    root = made
  }
  return mkdtempSync(path.join(root, 'case-'))
}

/** A copy of the pipeline in the fixtures, one of its JSON files changed. */
export function pipelineWith(
  file: string,
  change: (json: Record<string, unknown>) => void = () => {},
): string {
  const folder = temporaryFolder()
  cpSync(fixture('diffusers_pipeline'), folder, { recursive: true })
  const json = JSON.parse(readFileSync(path.join(folder, file), 'utf8'))
  change(json)
  writeFileSync(path.join(folder, file), JSON.stringify(json))
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
