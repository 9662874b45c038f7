# Strings, hashes, big integers, threads and garbage collection.
require 'digest'
require 'json'

words = Array.new(60_000) { |i| "word#{(i * 7919) % 10_007}" }
puts words.tally.sort.first(3).inspect
puts Digest::SHA256.hexdigest(words.map(&:reverse).sort.join)
puts (2**9000).to_s.length
tree = 5000.times.map { |i| { 'id' => i, 'list' => [i] * (i % 9) } }
3.times { tree = JSON.parse(JSON.generate(tree)) }
puts Digest::SHA256.hexdigest(JSON.generate(tree))
sums = 4.times.map do |t|
  Thread.new { (1..20_000).sum { |i| "#{t}#{i}".length } }
end
puts sums.map(&:value).inspect
10.times { Array.new(30_000) { Object.new } ; GC.start }
GC.compact if GC.respond_to?(:compact)
readers = 5.times.map do |i|
  reader, writer = IO.pipe
  fork { reader.close; writer.write(('x' * 1000 * i).length.to_s); writer.close }
  writer.close
  reader
end
puts readers.map(&:read).inspect
Process.waitall
