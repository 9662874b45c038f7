import java.util.*;
import java.util.stream.*;
import java.util.zip.*;

/** Threads, native compression and direct buffers: the JVM's own malloc. */
class Streams {
  public static void main(String[] arguments) throws Exception {
    Map<Integer, Long> lengths = IntStream.range(0, 400_000).parallel()
        .mapToObj(i -> "s" + i * 31 % 9973)
        .collect(Collectors.groupingBy(
            String::length, TreeMap::new, Collectors.counting()));
    System.out.println(lengths);
    Thread[] threads = new Thread[4];
    long[] sums = new long[threads.length];
    for (int t = 0; t < threads.length; t++) {
      final int id = t;
      threads[t] = new Thread(() -> sums[id] = compress(id));
      threads[t].start();
    }
    for (Thread thread : threads) thread.join();
    System.out.println(Arrays.toString(sums));
  }

  static long compress(int seed) {
    CRC32 crc = new CRC32();
    for (int round = 0; round < 30; round++) {
      byte[] data = new byte[50_000];
      new Random(seed * 100 + round).nextBytes(data);
      Arrays.fill(data, 0, 20_000, (byte) seed);
      Deflater deflater = new Deflater();
      deflater.setInput(data);
      deflater.finish();
      byte[] packed = new byte[60_000];
      crc.update(packed, 0, deflater.deflate(packed));
      deflater.end();
      java.nio.ByteBuffer.allocateDirect(100_000).putInt(0, round);
    }
    return crc.getValue();
  }
}
