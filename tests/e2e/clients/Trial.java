import java.math.BigDecimal;
import java.sql.*;
import java.util.*;

/** What programs do through JDBC, the same for each driver; prints a line for each thing that it saw. */
public class Trial {
  static void say(String what, Object... values) {
    System.out.println(what + "\t" + String.join("|", Arrays.stream(values).map(String::valueOf).toList()));
  }

  static void names(String what, ResultSet found, String... columns) throws SQLException {
    var lines = new TreeSet<String>();
    try (found) {
      while (found.next()) {
        var line = new ArrayList<String>();
        for (var column : columns) line.add(String.valueOf(found.getString(column)));
        lines.add(String.join(".", line));
      }
    }
    say(what, lines.toArray());
  }

  public static void main(String[] arguments) throws Exception {
    var properties = new Properties();
    for (int i = 1; i < arguments.length; i++) {
      var pair = arguments[i].split("=", 2);
      properties.put(pair[0], pair[1]);
    }
    TimeZone.setDefault(TimeZone.getTimeZone("UTC"));
    try (var connection = DriverManager.getConnection(arguments[0], properties)) {
      try (var statement = connection.createStatement()) {
        statement.execute("CREATE TABLE lab.jdbc (id BIGINT NOT NULL, name VARCHAR, price DECIMAL(10,2), day DATE, at TIMESTAMP(6), ok BOOLEAN, part DOUBLE)");
        say("inserted", statement.executeUpdate("INSERT INTO lab.jdbc VALUES (1, 'it''s', 9.90, DATE '2024-12-01', TIMESTAMP '2024-12-01 10:00:00', true, 0.5)"));
      }
      try (var insert = connection.prepareStatement("INSERT INTO lab.jdbc VALUES (?, ?, ?, ?, ?, ?, ?)")) {
        insert.setLong(1, 2);
        insert.setString(2, "größe, 'a' ?");
        insert.setBigDecimal(3, new BigDecimal("-12.30"));
        insert.setDate(4, java.sql.Date.valueOf("2024-02-29"));
        insert.setTimestamp(5, Timestamp.valueOf("2024-02-29 23:59:59.5"));
        insert.setBoolean(6, false);
        insert.setDouble(7, -1.25e-3);
        say("prepared", insert.executeUpdate());
      }
      try (var insert = connection.prepareStatement("INSERT INTO lab.jdbc (id, name) VALUES (?, ?)")) {
        insert.setLong(1, 3);
        insert.setNull(2, Types.VARCHAR);
        say("with null", insert.executeUpdate());
      }
      try (var select = connection.prepareStatement("SELECT id, name, price, day, at, ok, part FROM lab.jdbc WHERE id >= ? ORDER BY id")) {
        select.setLong(1, 2);
        try (var rows = select.executeQuery()) {
          var told = rows.getMetaData();
          var types = new ArrayList<String>();
          for (int i = 1; i <= told.getColumnCount(); i++) types.add(told.getColumnLabel(i) + " " + JDBCType.valueOf(told.getColumnType(i)));
          say("types", types.toArray());
          while (rows.next()) {
            say("row", rows.getLong(1), rows.getString(2), rows.getBigDecimal(3), rows.getDate(4), rows.getTimestamp(5), rows.getBoolean(6), rows.wasNull(), rows.getDouble(7));
          }
        }
      }
      try (var statement = connection.createStatement(); var rows = statement.executeQuery("SELECT value FROM generate_series(1, 100000)")) {
        long sum = 0;
        while (rows.next()) sum += rows.getLong(1);
        say("sum", sum);
      }
      try (var statement = connection.createStatement()) {
        statement.executeQuery("SELECT * FROM lab.nowhere").next();
        say("error", "none");
      } catch (SQLException error) {
        say("error", error.getMessage().replace('\n', ' '));
      }
      var about = connection.getMetaData();
      say("product", about.getDatabaseProductName());
      names("catalogs", about.getCatalogs(), "TABLE_CAT");
      names("schemas", about.getSchemas(), "TABLE_SCHEM");
      names("tables", about.getTables(null, "lab", "%", null), "TABLE_SCHEM", "TABLE_NAME");
      names("columns", about.getColumns(null, "lab", "jdbc", "%"), "COLUMN_NAME", "TYPE_NAME");
    }
  }
}
