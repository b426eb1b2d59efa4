import { type FileHandle, open } from 'node:fs/promises'
import { fileError } from '../errors.js'

/**
 * metrics.jsonl: one JSON object per line.
 *
 * A checkpoint knows how many bytes were written before it. What follows them belongs to steps that a
 * resumed training makes again, so it is cut off: the file is one history.
 *
 * @internal
 */
export class MetricsLog {
  readonly #file: string
  readonly #handle: FileHandle
  #bytes: number

  private constructor(file: string, handle: FileHandle, bytes: number) {
    this.#file = file
    this.#handle = handle
    this.#bytes = bytes
  }

  /** Opens the file for what comes after its first `bytes`. Rejects with ERR_DIT_FILE. */
  static async open(file: string, bytes: number): Promise<MetricsLog> {
    try {
      await (await open(file, 'a')).close() // it exists now
      const handle = await open(file, 'r+')
      try {
        const { size } = await handle.stat()
        const kept = Math.min(size, bytes)
        await handle.truncate(kept)
        return new MetricsLog(file, handle, kept)
      } catch (error) {
        await handle.close()
        throw error
      }
    } catch (cause) {
      throw fileError(file, 'write', cause)
    }
  }

  /** Whole lines so far, in bytes. */
  get bytes(): number {
    return this.#bytes
  }

  /** Adds a line. What a failed call wrote of one is overwritten by the next. */
  async add(record: object): Promise<void> {
    const line = Buffer.from(`${JSON.stringify(record)}\n`)
    try {
      for (let done = 0; done < line.length; ) {
        const rest = line.subarray(done)
        done += (await this.#handle.write(rest, 0, rest.length, this.#bytes + done)).bytesWritten
      }
    } catch (cause) {
      throw fileError(this.#file, 'write', cause)
    }
    this.#bytes += line.length
  }

  async close(): Promise<void> {
    await this.#handle.truncate(this.#bytes)
    await this.#handle.close()
  }
}
