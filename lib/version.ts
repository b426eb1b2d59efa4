import { readFileSync } from 'node:fs'
import path from 'node:path'
import { packageRoot } from './root.cjs'

/** This package's version. @internal */
export function packageVersion(): string {
  const json = readFileSync(path.join(packageRoot, 'package.json'), 'utf8')
  return (JSON.parse(json) as { version: string }).version
}
