import java.io.*;
import java.net.*;
import java.util.*;
import java.util.concurrent.*;
import java.util.concurrent.atomic.*;

/**
 * Holds a heap it can check, and makes garbage of it under load.
 *
 * Port 7000 takes 8 bytes, a number one higher than the connection's last, and gives them back; it
 * hangs up at any other. Port 7001 answers a line with what is there, as a line of JSON. The argument
 * is the milliseconds between two changes that it makes by itself.
 */
public class Load {
    static final int ENTRIES = 8192;
    static final Map<Integer, byte[]> heap = new ConcurrentHashMap<>();
    static final AtomicLong served = new AtomicLong();

    static byte[] value(int key) {
        byte[] bytes = new byte[4096];
        new Random(key).nextBytes(bytes);
        return bytes;
    }

    /** Replace an entry by an equal one; a damaged one ends the program. */
    static void turnOver() {
        int key = ThreadLocalRandom.current().nextInt(ENTRIES);
        if (!Arrays.equals(heap.put(key, value(key)), value(key))) {
            System.exit(1);
        }
    }

    static void echo(Socket socket) {
        try (socket) {
            socket.setTcpNoDelay(true);
            DataInputStream in = new DataInputStream(socket.getInputStream());
            DataOutputStream out = new DataOutputStream(socket.getOutputStream());
            for (long expected = 0; in.readLong() == expected; expected++) {
                turnOver();
                served.incrementAndGet();
                out.writeLong(expected);
            }
        } catch (IOException gone) {
            // The client has ended.
        }
    }

    static void tell(Socket socket) {
        try (socket) {
            BufferedReader in = new BufferedReader(new InputStreamReader(socket.getInputStream()));
            OutputStream out = socket.getOutputStream();
            while (in.readLine() != null) {
                long damaged = heap.entrySet().stream()
                    .filter(each -> !Arrays.equals(each.getValue(), value(each.getKey()))).count();
                out.write(String.format(
                    "{\"pid\": %d, \"entries\": %d, \"damaged\": %d, \"served\": %d}%n",
                    ProcessHandle.current().pid(), heap.size(), damaged, served.get()
                ).getBytes());
            }
        } catch (IOException gone) {
            // The client has ended.
        }
    }

    interface Handler {
        void handle(Socket socket);
    }

    static void serve(int port, Handler handler) throws IOException {
        ServerSocket server = new ServerSocket(port);
        new Thread(() -> {
            while (true) {
                try {
                    Socket socket = server.accept();
                    new Thread(() -> handler.handle(socket)).start();
                } catch (IOException error) {
                    throw new UncheckedIOException(error);
                }
            }
        }).start();
    }

    public static void main(String[] arguments) throws IOException {
        for (int key = 0; key < ENTRIES; key++) {
            heap.put(key, value(key));
        }
        ScheduledExecutorService timer = Executors.newScheduledThreadPool(2);
        long pause = Long.parseLong(arguments[0]);
        timer.scheduleAtFixedRate(Load::turnOver, 0, pause, TimeUnit.MILLISECONDS);
        serve(7001, Load::tell);
        serve(7000, Load::echo);
        System.out.println("ready");
    }
}
